"""Every text of the report, in English and French, by its key.

Values stand in braces. A key that begins with "js." is for the page's script. Names of settings, columns and
commands are the same in every language; the page marks them with translate="no".
"""

TEXTS: dict[str, tuple[str, str]] = {
    # The page
    "page.run": ("shelfmark, run {run}", "shelfmark, lot {run}"),
    "page.contents": ("On this page", "Sur cette page"),
    "page.skip": ("Skip to the content", "Aller au contenu"),
    "page.made_by": (
        "Made by shelfmark {version}. This page opens without a network. It contains plotly.js (MIT "
        "licence, © Plotly, Inc.).",
        "Fait par shelfmark {version}. Cette page s’ouvre sans réseau. Elle contient plotly.js (licence "
        "MIT, © Plotly, Inc.).",
    ),
    "page.no_script": (
        "This browser runs no scripts: plots, photos and long tables are not shown. All figures are in the "
        "run’s files.",
        "Ce navigateur n’exécute pas de scripts : graphiques, photos et longs tableaux ne s’affichent pas. "
        "Tous les chiffres sont dans les fichiers du lot.",
    ),
    "page.colon": ("{name}: ", "{name} : "),
    "none": ("none", "aucun"),
    "yes": ("yes", "oui"),
    "no": ("no", "non"),
    # Banners
    "random.title": (
        "Demonstration only: the backbone’s weights are random.",
        "Démonstration seulement : les poids du réseau de base sont aléatoires.",
    ),
    "random.text": (
        "The backbone was never trained. The numbers show that every step runs, not how well it works.",
        "Le réseau de base n’a jamais été entraîné. Les chiffres montrent que chaque étape fonctionne, pas "
        "avec quelle qualité.",
    ),
    "unmeasured.title": ("Precision was not measured.", "La précision n’a pas été mesurée."),
    "unmeasured.text": (
        "The run has neither test nor certification products, so nothing can be said about precision.",
        "Le lot n’a ni produits de test ni produits de certification : on ne peut rien dire de la précision.",
    ),
    "dependent.title": (
        "Precision was not independently measured.",
        "La précision n’a pas été mesurée de façon indépendante.",
    ),
    "dependent.text": (
        "There are no test products. The figures come from the certification products, which also set the "
        "threshold.",
        "Il n’y a pas de produits de test. Les chiffres viennent des produits de certification, qui ont "
        "aussi fixé le seuil.",
    ),
    "below.title": (
        "Measured precision is below the promise: {precision} instead of {target}.",
        "La précision mesurée est sous la promesse : {precision} au lieu de {target}.",
    ),
    "below.text": (
        "With few accepted products this can be chance. Have a sample of the accepted products checked "
        "before you rely on them.",
        "Avec peu de produits acceptés, cela peut être le hasard. Faites contrôler un échantillon des "
        "produits acceptés avant de vous y fier.",
    ),
    # Headline
    "headline.certified": (
        "{rate} of all products can be categorized automatically, with at least {target} of them correct: "
        "certified.",
        "{rate} de tous les produits peuvent être classés automatiquement, dont au moins {target} "
        "correctement : certifié.",
    ),
    "headline.nothing": (
        "Nothing can be categorized automatically, because a precision of {target} is not certifiable: "
        "{then}.",
        "Rien ne peut être classé automatiquement, car une précision de {target} n’est pas certifiable : "
        "{then}.",
    ),
    "headline.more": (
        "{products} more certification products are needed, as a catalogue of {catalogue} more products "
        "would bring",
        "il faut encore {products} produits de certification, comme en apporterait un catalogue de "
        "{catalogue} produits de plus",
    ),
    "headline.never": (
        "more products alone will not change that",
        "davantage de produits n’y changeront rien à eux seuls",
    ),
    "about": ("about {count}", "environ {count}"),
    "at_least": ("at least {count}", "au moins {count}"),
    "speaks": (
        "This speaks of new products like the {products} {part} products. {unlearnt} of these are of "
        "categories that were not learnt; they count, and a category given to one of them is wrong.",
        "Ceci vaut pour de nouveaux produits semblables aux {products} produits de {part}. {unlearnt} "
        "d’entre eux sont de catégories non apprises ; ils comptent, et toute catégorie qui leur est donnée "
        "est fausse.",
    ),
    "promise.holds": (
        "The promise holds with {certainty} certainty. Shelfmark decides alone where its confidence is at "
        "least {threshold}, and leaves the rest to people.",
        "La promesse vaut avec une certitude de {certainty}. Shelfmark décide seul quand sa confiance est "
        "d’au moins {threshold}, et laisse le reste à des personnes.",
    ),
    "promise.none": (
        "Without a certificate shelfmark decides no category alone. These products go to people, with five "
        "suggestions.",
        "Sans certificat, shelfmark ne décide seul d’aucune catégorie. Ces produits vont à des personnes, "
        "avec cinq suggestions.",
    ),
    "promise.parents": (
        "Of {products} further products the branch of the tree was decided, with {precision} of these "
        "branches correct.",
        "Pour {products} autres produits, la branche de l’arbre a été décidée ; {precision} de ces branches "
        "sont correctes.",
    ),
    "fact.precision": (
        "correct, of {accepted} accepted {part} products",
        "corrects, sur {accepted} produits de {part} acceptés",
    ),
    "fact.could": (
        "of the {part} products could be accepted with {target} correct, as measured: not promised, not used",
        "des produits de {part} pourraient être acceptés avec {target} de corrects, d’après la mesure : ni "
        "promis, ni utilisé",
    ),
    "fact.everything": (
        "correct, if all {products} {part} products were accepted",
        "corrects, si les {products} produits de {part} étaient tous acceptés",
    ),
    "fact.categories": (
        "categories learnt; {unlearnt} others were not",
        "catégories apprises ; {unlearnt} autres ne l’ont pas été",
    ),
    "fact.products": ("products in the catalogue", "produits dans le catalogue"),
    "fact.hours": (
        "hours of work saved, of {weekly} products without category",
        "heures de travail économisées, sur {weekly} produits sans catégorie",
    ),
    # Parts
    "part.train": ("Training", "Entraînement"),
    "part.val": ("Validation", "Validation"),
    "part.cert": ("Certification", "Certification"),
    "part.test": ("Test", "Test"),
    "part.train.small": ("training", "entraînement"),
    "part.val.small": ("validation", "validation"),
    "part.cert.small": ("certification", "certification"),
    "part.test.small": ("test", "test"),
    "part.train.meaning": (
        "The head was trained on these, so the figures are too optimistic.",
        "Le modèle a été entraîné sur eux : ces chiffres sont trop optimistes.",
    ),
    "part.val.meaning": (
        "Held back from training. One share chose the settings, the other certified.",
        "Tenus à l’écart de l’entraînement. Une partie a choisi les réglages, l’autre a certifié.",
    ),
    "part.cert.meaning": (
        "The share of validation that set the threshold, used for nothing else.",
        "La partie de la validation qui a fixé le seuil, et qui n’a servi à rien d’autre.",
    ),
    "part.test.meaning": (
        "Used for these figures alone. This is what to expect of new products.",
        "N’ont servi qu’à ces chiffres. C’est ce qu’on peut attendre de nouveaux produits.",
    ),
    "part.unseen": (
        "{part}: products with no photo seen in training",
        "{part} : produits dont aucune photo n’a servi à l’entraînement",
    ),
    "part.learnt": (
        "{part}: products of learnt categories alone",
        "{part} : produits des catégories apprises seulement",
    ),
    "part.weighted": (
        "{part}: each product counted by its weight in the source",
        "{part} : chaque produit compté selon son poids dans la source",
    ),
    "part.absent": ("There are no such products.", "Il n’y a pas de tels produits."),
    # The threshold chooser
    "chooser.title": ("What another threshold would do", "Ce que ferait un autre seuil"),
    "chooser.text": (
        "Move the slider to accept more or fewer products. The figures are those of the {products} {part} "
        "products. Nothing here changes what shelfmark does: the threshold in use is set by {setting}.",
        "Déplacez le curseur pour accepter plus ou moins de produits. Les chiffres sont ceux des {products} "
        "produits de {part}. Rien ici ne change ce que fait shelfmark : le seuil utilisé dépend de "
        "{setting}.",
    ),
    "chooser.slider": ("Share of products accepted", "Part des produits acceptés"),
    "chooser.jump": ("Certified points", "Points certifiés"),
    "chooser.acceptance": ("accepted", "acceptés"),
    "chooser.precision": ("of the accepted are correct", "des acceptés sont corrects"),
    "chooser.band": ("{certainty} band", "bande à {certainty}"),
    "chooser.products": (
        "products a week decided automatically",
        "produits par semaine décidés automatiquement",
    ),
    "chooser.wrong": ("of these probably wrong", "dont probablement faux"),
    "chooser.saved": ("hours of work saved a week", "heures de travail économisées par semaine"),
    "chooser.money": ("saved a week", "économisés par semaine"),
    "chooser.threshold": ("threshold of confidence", "seuil de confiance"),
    "chooser.weekly": ("Products a week", "Produits par semaine"),
    "chooser.weekly.hint": (
        "At first the {products} products of this source that have no category.",
        "Au départ, les {products} produits de cette source qui n’ont pas de catégorie.",
    ),
    "chooser.weekly.none": (
        "This source has no products without category, so the count begins at 1,000.",
        "Cette source n’a pas de produits sans catégorie : le compte commence à 1 000.",
    ),
    "chooser.minutes": ("Minutes a product", "Minutes par produit"),
    "chooser.wage": ("Wage an hour, in {currency}", "Salaire horaire, en {currency}"),
    "js.certified": (
        "Certified: at least {target} of what is accepted here is correct, with {certainty} certainty.",
        "Certifié : au moins {target} de ce qui est accepté ici est correct, avec une certitude de "
        "{certainty}.",
    ),
    "js.in_use": ("This threshold is in use.", "Ce seuil est utilisé."),
    "js.measured": (
        "Measured only, not certified: on new products, the precision may be lower.",
        "Seulement mesuré, non certifié : sur de nouveaux produits, la précision peut être plus basse.",
    ),
    "js.value": (
        "{rate} accepted, {precision} of them correct",
        "{rate} acceptés, dont {precision} corrects",
    ),
    # Acceptance
    "acceptance.title": (
        "How many products can be categorized automatically",
        "Combien de produits peuvent être classés automatiquement",
    ),
    "acceptance.text": (
        "Products are accepted in the order of their confidence. Further to the right, more products are "
        "accepted, and more of them are wrong. The coarser lines show each level by itself: a branch of the "
        "tree is easier than a category.",
        "Les produits sont acceptés dans l’ordre de leur confiance. Plus on va à droite, plus on accepte de "
        "produits, et plus il y en a de faux. Les autres lignes montrent chaque niveau à part : une branche "
        "de l’arbre est plus facile qu’une catégorie.",
    ),
    "acceptance.caption": (
        "{products} {part} products. The band goes from the lower to the upper bound of the precision (with "
        "{certainty} certainty at each single point). The upright line is the slider.",
        "{products} produits de {part}. La bande va de la borne inférieure à la borne supérieure de la "
        "précision (avec une certitude de {certainty} en chaque point pris seul). La ligne verticale est le "
        "curseur.",
    ),
    "acceptance.x": (
        "acceptance rate: share of all products",
        "taux d’acceptation : part de tous les produits",
    ),
    "acceptance.y": ("precision of the accepted", "précision des acceptés"),
    "acceptance.category": ("category", "catégorie"),
    "acceptance.level": ("level {level}", "niveau {level}"),
    "acceptance.band": ("band of the category", "bande de la catégorie"),
    "acceptance.promised": ("promised {target}", "promis : {target}"),
    "acceptance.in_use": ("certified, in use", "certifié, utilisé"),
    "acceptance.certified": ("certified for another target", "certifié pour une autre cible"),
    "acceptance.alt": (
        "Curve of precision against acceptance rate. {rates}. The table of targets below has the certified "
        "points.",
        "Courbe de la précision selon le taux d’acceptation. {rates}. Le tableau des cibles ci-dessous "
        "donne les points certifiés.",
    ),
    "acceptance.at": ("at {rate} accepted, {precision} correct", "à {rate} acceptés, {precision} corrects"),
    # Levels
    "levels.title": (
        "What is decided at each level of the tree",
        "Ce qui est décidé à chaque niveau de l’arbre",
    ),
    "levels.text": (
        "A product gets its category if that is certified, else its parent, else the level above, else a "
        "person decides. The promise of a level is about the products that stop there. All promises "
        "together hold with {certainty} certainty. A person decides about {review} of the {products} {part} "
        "products.",
        "Un produit reçoit sa catégorie si elle est certifiée, sinon la catégorie parente, sinon le niveau "
        "au-dessus, sinon une personne décide. La promesse d’un niveau porte sur les produits qui s’y "
        "arrêtent. Toutes les promesses ensemble valent avec une certitude de {certainty}. Une personne "
        "décide pour {review} des {products} produits de {part}.",
    ),
    "levels.hierarchy": (
        "“Agrees” is the share of products whose most likely category lies in the most likely branch of the "
        "level. Of the nodes on the paths to the predicted categories, {precision} are correct; of those on "
        "the paths to the true categories, {recall} are found (hierarchical precision and recall; F1 {f1}).",
        "« Concorde » est la part des produits dont la catégorie la plus probable est dans la branche la "
        "plus probable du niveau. Des nœuds sur les chemins vers les catégories prédites, {precision} sont "
        "corrects ; de ceux sur les chemins vers les vraies catégories, {recall} sont trouvés (précision et "
        "rappel hiérarchiques ; F1 {f1}).",
    ),
    "levels.name": ("Level {level}", "Niveau {level}"),
    "levels.coarsest": ("Level {level} (coarsest)", "Niveau {level} (le plus général)"),
    "levels.category": ("Level {level} (category)", "Niveau {level} (catégorie)"),
    # Cumulative
    "cumulative.title": ("How far the best categories carry", "Jusqu’où mènent les meilleures catégories"),
    "cumulative.text": (
        "The categories in the order of their precision on FIT, the most precise first. Taking one category "
        "more each time, the lines show the share of all products that is predicted into the categories "
        "taken, and the correct share of these. Confidence plays no part here.",
        "Les catégories dans l’ordre de leur précision sur FIT, la plus précise d’abord. En prenant à "
        "chaque pas une catégorie de plus, les lignes montrent la part de tous les produits prédite dans "
        "les catégories prises, et la part correcte de ceux-ci. La confiance n’intervient pas ici.",
    ),
    "cumulative.x": ("categories taken", "catégories prises"),
    "cumulative.y": ("share", "part"),
    "cumulative.acceptance": ("acceptance rate", "taux d’acceptation"),
    "cumulative.precision": ("precision", "précision"),
    "cumulative.kept": ("best {share}", "les {share} meilleures"),
    "cumulative.alt": (
        "With all {categories} categories, {precision} of the products are correct; with the better half, "
        "{half} of {rate} of the products.",
        "Avec les {categories} catégories, {precision} des produits sont corrects ; avec la meilleure "
        "moitié, {half} de {rate} des produits.",
    ),
    "restriction.certified": (
        "With the best {share} of the categories only ({dropped} left out), {rate} of the certification "
        "products that are predicted into them can be accepted at {target}, which is {all} of all: "
        "certified by itself, for planning.",
        "Avec les {share} meilleures catégories seulement ({dropped} laissées de côté), {rate} des produits "
        "de certification qui y sont prédits peuvent être acceptés à {target}, soit {all} de tous : "
        "certifié séparément, pour la planification.",
    ),
    "restriction.none": (
        "Leaving out all but the best {share} of the categories does not make {target} certifiable.",
        "Ne garder que les {share} meilleures catégories ne rend pas {target} certifiable.",
    ),
    # Ladder
    "ladder.title": ("What another promise would cost", "Ce que coûterait une autre promesse"),
    "ladder.text": (
        "Each row is a promise about categories that could be made instead, with its own certificate: "
        "together with the promises of the levels above, each would hold with {certainty} certainty. Looking "
        "at many of them costs nothing, because only the one in use is used: the others are for planning. "
        "{setting} sets the target.",
        "Chaque ligne est une promesse possible pour les catégories à la place de l’actuelle, avec son "
        "propre certificat : avec les promesses des niveaux au-dessus, chacune tiendrait avec une "
        "certitude de {certainty}. En regarder beaucoup ne coûte rien, car seule celle en usage est "
        "utilisée : les autres "
        "servent à planifier. {setting} fixe la cible.",
    ),
    "ladder.certified": ("certified", "certifié"),
    "ladder.in_use": ("certified, in use", "certifié, utilisé"),
    "ladder.not": ("not certifiable", "non certifiable"),
    # Categories
    "categories.title": ("Categories", "Catégories"),
    "categories.concentration": (
        "{few} of {all} categories with {part} products have 80% of the errors. Check these first.",
        "{few} des {all} catégories avec des produits de {part} ont 80 % des erreurs. Contrôlez-les d’abord.",
    ),
    "categories.text": (
        "“Found” is the share of the category’s {part} products that were recognised (recall). “Predicted” "
        "counts the decisions for the category. “Estimate” is their correct share, drawn towards that of "
        "all categories where there are few products, with a {certainty} interval. Automatic: the whole "
        "interval is at {target} or above, so that even decisions with low confidence are good enough. "
        "Always review: its accepted products are below {target}, or none is accepted. A status is an "
        "advice, not a promise: the promise is about all accepted products together.",
        "« Trouvés » est la part des produits de {part} de la catégorie qui ont été reconnus (rappel). « "
        "Prédits » compte les décisions pour la catégorie. « Estimation » est leur part correcte, "
        "rapprochée de celle de toutes les catégories quand il y a peu de produits, avec un intervalle à "
        "{certainty}. Automatique : tout l’intervalle est à {target} ou au-dessus, si bien que même des "
        "décisions de faible confiance sont assez bonnes. Toujours vérifier : ses produits acceptés sont "
        "sous {target}, ou aucun n’est accepté. Un statut est un conseil, pas une promesse : la promesse "
        "porte sur tous les produits acceptés ensemble.",
    ),
    "categories.photos": (
        "Open a row to see the curve of the category. {count} categories with many errors have photos, too.",
        "Ouvrez une ligne pour voir la courbe de la catégorie. {count} catégories avec beaucoup d’erreurs "
        "ont aussi des photos.",
    ),
    "categories.statuses": (
        "{automatic} categories automatic, {care} with care, {review} always to review, {few} with too few "
        "products to say.",
        "{automatic} catégories automatiques, {care} avec prudence, {review} toujours à vérifier, {few} "
        "avec trop peu de produits pour le dire.",
    ),
    "status.automatic": ("● automatic", "● automatique"),
    "status.with care": ("◐ with care", "◐ avec prudence"),
    "status.always review": ("○ always review", "○ toujours vérifier"),
    "status.too few": ("… too few to say", "… trop peu pour le dire"),
    "js.curve": (
        "Precision of the decisions for this category, from the most confident tenth to all {predicted}",
        "Précision des décisions pour cette catégorie, du dixième le plus sûr à toutes les {predicted}",
    ),
    "js.photos.correct": ("Predicted here, correct", "Prédits ici, corrects"),
    "js.photos.wrong": ("Predicted here, wrong", "Prédits ici, faux"),
    "js.photos.doubtful": ("Predicted here, most doubtful", "Prédits ici, les plus douteux"),
    "js.photos.none": (
        "No photos of this category in the page: it has room for {count} photos, and other categories have "
        "more errors.",
        "Pas de photos de cette catégorie dans la page : elle a place pour {count} photos, et d’autres "
        "catégories ont plus d’erreurs.",
    ),
    "maps.toggle": ("Show where the network looked", "Montrer où le réseau a regardé"),
    "maps.text": (
        "In {count} photos of wrong and doubtful products: what is light speaks for the predicted category, "
        "what is dark does not.",
        "Sur {count} photos de produits faux ou douteux : ce qui est clair parle pour la catégorie prédite, "
        "ce qui est sombre ne parle pas pour elle.",
    ),
    # Confusions and wrong products
    "confusions.title": ("Which categories are confused", "Quelles catégories sont confondues"),
    "confusions.text": (
        "The most frequent confusions among the {part} products. Left a product of the true category that "
        "was confused, right one that is rightly in the predicted category. If two categories mean the same "
        "to a buyer, change the tree, not the model.",
        "Les confusions les plus fréquentes parmi les produits de {part}. À gauche, un produit de la vraie "
        "catégorie qui a été confondu, à droite, un produit qui est à juste titre dans la catégorie "
        "prédite. Si deux catégories disent la même chose à un acheteur, changez l’arbre, pas le modèle.",
    ),
    "confusions.none": (
        "No {part} product was put into a wrong category.",
        "Aucun produit de {part} n’a été mis dans une fausse catégorie.",
    ),
    "wrong.title": ("Wrong with high confidence", "Faux avec une grande confiance"),
    "wrong.text": (
        "The wrong decisions with the highest confidence, at most {most}. Some of them are wrong labels of "
        "the catalogue, not wrong decisions.",
        "Les décisions fausses avec la plus grande confiance, au plus {most}. Certaines sont des étiquettes "
        "fausses du catalogue, pas des décisions fausses.",
    ),
    "suspects.title": ("Labels in doubt", "Étiquettes douteuses"),
    "suspects.text": (
        "Products whose category in the catalogue is probably wrong, the most suspicious first: {shown} of "
        "{all}. Correct them in the catalogue; the next run learns from it.",
        "Produits dont la catégorie dans le catalogue est probablement fausse, les plus suspects d’abord : "
        "{shown} sur {all}. Corrigez-les dans le catalogue ; le prochain lot en tiendra compte.",
    ),
    "suspects.noise": (
        "By a rough estimate, which is rather too high, {noise} of all labels are wrong. If so, a precision "
        "measured on these labels cannot be above {ceiling}.",
        "Selon une estimation grossière, plutôt trop haute, {noise} de toutes les étiquettes sont fausses. "
        "Dans ce cas, une précision mesurée sur ces étiquettes ne peut pas dépasser {ceiling}.",
    ),
    "suspects.ceiling": (
        "The promised {target} is above that: correct labels first, or promise less.",
        "Les {target} promis sont au-dessus : corrigez d’abord des étiquettes, ou promettez moins.",
    ),
    "reason.prediction": ("the prediction", "la prédiction"),
    "reason.identical image": ("an identical image elsewhere", "une image identique ailleurs"),
    "suspects.none": (
        "Labels in doubt were not looked for in this run. This command does it, and the next report shows "
        "them:",
        "Les étiquettes douteuses n’ont pas été cherchées dans ce lot. Cette commande le fait, et le "
        "prochain rapport les montre :",
    ),
    # Reliability
    "reliability.title": ("Whether confidence can be believed", "Peut-on croire la confiance"),
    "reliability.text": (
        "Products with about the same confidence, and the correct share of them, with a 95% interval. On "
        "the diagonal, confidence says exactly how often it is correct; below it, it is too certain. Bars: "
        "how many products.",
        "Les produits de confiance voisine, et leur part correcte, avec un intervalle à 95 %. Sur la "
        "diagonale, la confiance dit exactement combien de fois elle est correcte ; en dessous, elle est "
        "trop sûre. Barres : combien de produits.",
    ),
    "reliability.x": ("confidence", "confiance"),
    "reliability.y": ("correct share", "part correcte"),
    "reliability.products": ("products", "produits"),
    "reliability.diagonal": ("exactly reliable", "exactement fiable"),
    "reliability.measured": ("measured", "mesuré"),
    "reliability.alt": (
        "Reliability diagram. On average, confidence and correct share differ by {error} points.",
        "Diagramme de fiabilité. En moyenne, confiance et part correcte diffèrent de {error} points.",
    ),
    # Departments
    "departments.title": ("Departments", "Rayons"),
    "departments.text": (
        "The certification products by the department, the branch of level 1, that is predicted, at the "
        "threshold in use. “Certified” departments keep the promise by themselves, all of them together "
        "with {certainty} certainty (Holm’s correction for looking at several).",
        "Les produits de certification selon le rayon prédit, la branche du niveau 1, au seuil utilisé. Les "
        "rayons « certifiés » tiennent la promesse à eux seuls, tous ensemble avec une certitude de "
        "{certainty} (correction de Holm pour en regarder plusieurs).",
    ),
    "departments.certified": ("certified", "certifié"),
    "departments.not": ("not shown", "non démontré"),
    # Cost
    "cost.title": ("What it saves", "Ce que cela économise"),
    "cost.text": (
        "For {weekly} products a week, with {minutes} min of work a product, at {wage} an hour. These come "
        "from {settings}, and from the products without category in this source. The fields of the slider "
        "above try other values.",
        "Pour {weekly} produits par semaine, avec {minutes} min de travail par produit, à {wage} de "
        "l’heure. Ces valeurs viennent de {settings}, et des produits sans catégorie de cette source. Les "
        "champs du curseur ci-dessus en essaient d’autres.",
    ),
    "cost.none": (
        "No promise is certified, so nothing is decided automatically and nothing is saved.",
        "Aucune promesse n’est certifiée : rien n’est décidé automatiquement, et rien n’est économisé.",
    ),
    # Sellers
    "sellers.title": ("What sellers’ corrections bring", "Ce qu’apportent les corrections des vendeurs"),
    "sellers.off": (
        "Not measured: the setting sellers.method is none, so corrections change no decision.",
        "Non mesuré : le réglage sellers.method vaut none, donc les corrections ne changent aucune décision.",
    ),
    "sellers.missing": (
        "Not measured in this run. This command measures it:",
        "Non mesuré dans ce lot. Cette commande le mesure :",
    ),
    "sellers.nobody": (
        "Not measured: none of the measured products has a seller. Give the column seller in the source.",
        "Non mesuré : aucun des produits mesurés n’a de vendeur. Ajoutez la colonne seller à la source.",
    ),
    "sellers.few": (
        "Not measured: {enough} of the {there} sellers have at least 10 measured products with different "
        "photos, and at least 2 such sellers are needed.",
        "Non mesuré : {enough} des {there} vendeurs ont au moins 10 produits mesurés dont les photos "
        "diffèrent, et il faut au moins 2 vendeurs de ce genre.",
    ),
    "sellers.meaning": (
        "When a seller corrects categories, the next decisions about this seller’s products change at once, "
        "without training: {adapted} of the categories are correct instead of {base}, that is {gain} points "
        "(95% interval {interval}), measured with {sellers} sellers.",
        "Quand un vendeur corrige des catégories, les décisions suivantes sur ses produits changent "
        "aussitôt, sans entraînement : {adapted} des catégories sont correctes au lieu de {base}, soit "
        "{gain} points (intervalle à 95 % : {interval}), mesuré sur {sellers} vendeurs.",
    ),
    "sellers.new": (
        "None of them had a product in training, as is the case for a new seller.",
        "Aucun d’eux n’avait de produit à l’entraînement, comme un nouveau vendeur.",
    ),
    "sellers.known": (
        "Other products of these sellers were in training: of the {enough} sellers with enough products, "
        "{apart} had none there, and 10 are needed. A new seller may gain another amount.",
        "D’autres produits de ces vendeurs étaient à l’entraînement : des {enough} vendeurs qui ont assez "
        "de produits, {apart} n’en avaient aucun, et il en faut 10. Un nouveau vendeur peut "
        "gagner autrement.",
    ),
    "sellers.better": ("Sellers that gain", "Vendeurs qui gagnent"),
    "sellers.same": ("Sellers without a change", "Vendeurs sans changement"),
    "sellers.worse": ("Sellers that lose", "Vendeurs qui perdent"),
    "sellers.oracle": (
        "Correct with or without corrections: the most that a choice between both could reach",
        "Corrects avec ou sans corrections : le mieux qu’un choix entre les deux pourrait atteindre",
    ),
    "sellers.gains.title": ("Gain by number of corrections", "Gain selon le nombre de corrections"),
    "sellers.how": (
        "{resamples} times, a tenth of each seller’s products was set aside and judged, and the others were "
        "corrected one after the other. A seller with fewer products than a row says has made all "
        "corrections there. Bars and intervals: 95%, of sellers drawn again.",
        "{resamples} fois, un dixième des produits de chaque vendeur a été mis de côté et jugé, et les "
        "autres ont été corrigés l’un après l’autre. Un vendeur qui a moins de produits que ne dit une ligne "
        "y a fait toutes ses corrections. Barres et intervalles : 95 %, de vendeurs tirés à nouveau.",
    ),
    "sellers.gain": ("Gain, points", "Gain, points"),
    "sellers.x": ("Corrections of a seller", "Corrections d’un vendeur"),
    "sellers.y": ("More correct categories, points", "Catégories correctes en plus, points"),
    "sellers.alt": (
        "Gain in points by number of corrections: {gains}.",
        "Gain en points selon le nombre de corrections : {gains}.",
    ),
    "sellers.all": ("all", "toutes"),
    "sellers.decisions.title": ("Decided without a person", "Décidés sans personne"),
    "sellers.certified": (
        "Decisions that corrections made are accepted from a threshold of their own, with the promise that "
        "at least {target} of them are correct.",
        "Les décisions dues aux corrections sont acceptées à partir de leur propre seuil, avec la promesse "
        "qu’au moins {target} d’entre elles sont correctes.",
    ),
    "sellers.uncertified": (
        "No threshold for decisions that corrections made is certified for {target}: corrections change the "
        "category that a person sees, and nothing is accepted because of them.",
        "Aucun seuil n’est certifié à {target} pour les décisions dues aux corrections : elles changent la "
        "catégorie qu’une personne voit, et rien n’est accepté à cause d’elles.",
    ),
    "sellers.flagged": (
        "The corrections of {flagged} of these sellers looked wrong in some of the repetitions, although "
        "they are the catalogue’s own categories: check these sellers’ labels.",
        "Les corrections de {flagged} de ces vendeurs ont paru fausses dans certaines répétitions, alors que "
        "ce sont les catégories du catalogue : vérifiez les étiquettes de ces vendeurs.",
    ),
    "sellers.accepted_base": ("Without corrections", "Sans corrections"),
    "sellers.accepted": ("After all corrections", "Après toutes les corrections"),
    "sellers.accepted_adapted": ("Of these, because of corrections", "Dont dues aux corrections"),
    "sellers.table.title": ("The best and the worst sellers", "Les meilleurs et les pires vendeurs"),
    "sellers.table": (
        "{shown} of {all} sellers, those with the largest gain first. All of them are in the run’s file",
        "{shown} vendeurs sur {all}, ceux qui gagnent le plus d’abord. Tous sont dans le fichier du lot",
    ),
    "sellers.gains": ("gains", "gagne"),
    "sellers.equal": ("no change", "sans changement"),
    "sellers.loses": ("loses", "perd"),
    "sellers.left": (
        "Not shown: {left} of the {there} sellers with measured products, because they have fewer than 10 "
        "of them, because they had products in training while enough others had none, or because at most "
        "100 sellers are measured.",
        "Non montrés : {left} des {there} vendeurs qui ont des produits mesurés, parce qu’ils en ont moins "
        "de 10, parce qu’ils avaient des produits à l’entraînement quand assez d’autres n’en avaient pas, ou "
        "parce qu’on mesure 100 vendeurs au plus.",
    ),
    # Account
    "account.title": ("Where every image and product went", "Où sont allés chaque image et chaque produit"),
    "account.text": (
        "{images} images of {products} products came in. Each image is counted in exactly one row.",
        "{images} images de {products} produits sont entrées. Chaque image est comptée dans une seule ligne.",
    ),
    "account.records": ("{part} records", "Enregistrements : {part}"),
    "account.records.reason": (
        "Readable, of a product with a category.",
        "Lisibles, d’un produit avec une catégorie.",
    ),
    "account.uncategorized": ("Without category", "Sans catégorie"),
    "account.uncategorized.reason": (
        "Readable. These products wait for a decision.",
        "Lisibles. Ces produits attendent une décision.",
    ),
    "account.small": ("Small categories", "Petites catégories"),
    "account.small.reason": (
        "Readable, but of a category without training products.",
        "Lisibles, mais d’une catégorie sans produits d’entraînement.",
    ),
    "account.rejected": ("Rejected", "Refusées"),
    "account.sum": ("All images", "Toutes les images"),
    "account.products": (
        "Products without a category: {uncategorized}. Categories without training products: {categories}; "
        "{held_out} of their products are in validation and test, {dropped} are left out. Products without "
        "a readable image: {unreadable}.",
        "Produits sans catégorie : {uncategorized}. Catégories sans produits d’entraînement : {categories} "
        "; {held_out} de leurs produits sont en validation et en test, {dropped} sont laissés de côté. "
        "Produits sans image lisible : {unreadable}.",
    ),
    "account.shared": (
        "Images that several products share: {shared}; {contradictory} of these are in several categories, "
        "so some of their labels are wrong. Plain colours and images of very many products: {placeholders}.",
        "Images que plusieurs produits partagent : {shared} ; {contradictory} d’entre elles sont dans "
        "plusieurs catégories, donc certaines de leurs étiquettes sont fausses. Couleurs unies et images de "
        "très nombreux produits : {placeholders}.",
    ),
    "reject.missing": ("The file is not there.", "Le fichier n’est pas là."),
    "reject.empty": ("The file is empty.", "Le fichier est vide."),
    "reject.not_an_image": ("The file is not an image.", "Le fichier n’est pas une image."),
    "reject.format_not_allowed": (
        "This image format is not accepted.",
        "Ce format d’image n’est pas accepté.",
    ),
    "reject.too_large": ("Larger than the limit.", "Plus grande que la limite."),
    "reject.truncated": ("The file ends too early.", "Le fichier s’arrête trop tôt."),
    "reject.undecodable": ("The file is damaged.", "Le fichier est abîmé."),
    "reject.bad_document": (
        "The document of the source cannot be read.",
        "Le document de la source est illisible.",
    ),
    "reject.bad_row": (
        "The row of the source names no product.",
        "La ligne de la source ne nomme aucun produit.",
    ),
    "reject.unknown_category": (
        "Its category is not in the taxonomy.",
        "Sa catégorie n’est pas dans la taxonomie.",
    ),
    "reject.other": ("Other reason:", "Autre raison :"),
    # Unlearnt categories
    "unlearnt.title": ("Categories that were not learnt", "Catégories non apprises"),
    "unlearnt.text": (
        "These categories have too few products to train on, so nothing can be put into them. {accepted} of "
        "their {measured} {part} products were accepted into another category, and count as wrong. Merge "
        "such a category with a neighbour, or collect more products of it.",
        "Ces catégories ont trop peu de produits pour l’entraînement : rien ne peut y être mis. {accepted} "
        "de leurs {measured} produits de {part} ont été acceptés dans une autre catégorie, et comptent "
        "comme faux. Réunissez une telle catégorie avec une voisine, ou rassemblez-en davantage de produits.",
    ),
    "unlearnt.none": (
        "Every category with measured products was learnt.",
        "Toutes les catégories avec des produits mesurés ont été apprises.",
    ),
    # The tree
    "tree.title": ("What changed in the tree", "Ce qui a changé dans l’arborescence"),
    "tree.text": (
        "Categories that are not what they were in release {release}. Products of a split category have none "
        "until the catalogue gives them one. A category that is new, or a part of a split one, may wait: its "
        "products go to people until there are enough of them to learn from.",
        "Catégories qui ne sont plus ce qu’elles étaient dans la version {release}. Les produits d’une "
        "catégorie divisée n’en ont plus jusqu’à ce que le catalogue leur en donne une. Une catégorie "
        "nouvelle, ou issue d’une division, peut attendre : ses produits vont à des personnes jusqu’à ce "
        "qu’il y en ait assez pour apprendre.",
    ),
    "tree.none": (
        "The tree is the same as in release {release}.",
        "L’arborescence est la même que dans la version {release}.",
    ),
    "tree.rename": ("renamed", "renommée"),
    "tree.move": ("moved", "déplacée"),
    "tree.merge": ("merged", "réunie avec une autre"),
    "tree.split": ("split", "divisée"),
    "tree.delete": ("gone", "disparue"),
    "tree.dead": ("leads nowhere", "ne mène nulle part"),
    "tree.cyclic": ("leads back to itself", "revient à elle-même"),
    "tree.add": ("new", "nouvelle"),
    # Changes
    "changes.title": (
        "What changed since the release in service",
        "Ce qui a changé depuis la version en service",
    ),
    "changes.verdict": ("Verdict:", "Verdict (en anglais) :"),
    "changes.none": (
        "No release was in service when this run began, so there is nothing to compare with.",
        "Aucune version n’était en service au début de ce lot : il n’y a rien à comparer.",
    ),
    "changes.text": (
        "This run and release {release}, both on the same {products} {part} products of this run, each with "
        "its own threshold. Intervals are paired, at 95%: one that contains 0 can be chance.",
        "Ce lot et la version {release}, tous deux sur les mêmes {products} produits de {part} de ce lot, "
        "chacun avec son seuil. Les intervalles sont appariés, à 95 % : s’ils contiennent 0, cela peut être "
        "le hasard.",
    ),
    "changes.tree": (
        "The release is shown here as it decided. The verdict carries its decisions over to the tree of this "
        "week: what it accepts into a split category counts as left to a person, and products of the weeks "
        "before count, too. So the figures differ.",
        "La version est montrée ici telle qu’elle a décidé. Le verdict transpose ses décisions dans l’arbre "
        "de cette semaine : ce qu’elle accepte dans une catégorie scindée compte comme laissé à une "
        "personne, et des produits des semaines passées comptent aussi. Les chiffres diffèrent donc.",
    ),
    "changes.mcnemar": (
        "Products that became correct: {gained}; that became wrong: {lost} (McNemar’s exact test: p {p}). "
        "{verdict}",
        "Produits devenus corrects : {gained} ; devenus faux : {lost} (test exact de McNemar : p {p}). "
        "{verdict}",
    ),
    "changes.real": (
        "Chance alone does not explain this difference.",
        "Le hasard seul n’explique pas cette différence.",
    ),
    "changes.chance": (
        "Chance alone can explain this difference.",
        "Le hasard seul peut expliquer cette différence.",
    ),
    "changes.gained": (
        "Categories of these products that are learnt now and were not before: {count}.",
        "Catégories de ces produits apprises maintenant et pas avant : {count}.",
    ),
    "changes.lost": ("Learnt before and no longer: {count}.", "Apprises avant et plus maintenant : {count}."),
    "changes.acceptance": ("Acceptance rate", "Taux d’acceptation"),
    "changes.precision": ("Precision of the accepted", "Précision des acceptés"),
    "changes.everything": ("Correct, if everything were accepted", "Corrects, si tout était accepté"),
    "changes.departments": ("By department", "Par rayon"),
    "changes.departments.text": (
        "The most likely category of every product, accepted or not, by its true department. “Real” "
        "departments changed more than chance explains, all of them together with 95% certainty (McNemar’s "
        "test, Holm’s correction).",
        "La catégorie la plus probable de chaque produit, accepté ou non, selon son vrai rayon. Les rayons "
        "« réels » ont changé plus que le hasard ne l’explique, tous ensemble avec une certitude de 95 % "
        "(test de McNemar, correction de Holm).",
    ),
    "changes.is_real": ("real", "réel"),
    "changes.may_be_chance": ("may be chance", "peut-être le hasard"),
    "changes.became_correct": ("Became correct", "Devenus corrects"),
    "changes.became_wrong": ("Became wrong", "Devenus faux"),
    "changes.most": (
        "The {shown} with the highest confidence, of {all}.",
        "Les {shown} de plus grande confiance, sur {all}.",
    ),
    # Drift
    "drift.title": ("Drift", "Dérive"),
    "drift.text": (
        "This page is about the products of this run. Whether later batches still look like them is another "
        "question, which this command answers:",
        "Cette page parle des produits de ce lot. Savoir si les lots suivants leur ressemblent encore est "
        "une autre question, à laquelle cette commande répond :",
    ),
    # Parts, training, confidence, settings
    "parts.title": ("The parts of the catalogue, side by side", "Les parties du catalogue, côte à côte"),
    "parts.text": (
        "Large gaps between training and the other parts mean that the head has memorised its training "
        "products (overfitting).",
        "De grands écarts entre l’entraînement et les autres parties veulent dire que le modèle a appris "
        "par cœur ses produits d’entraînement (surapprentissage).",
    ),
    "training.title": ("How the head was trained", "Comment le modèle a été entraîné"),
    "training.best": (
        "{epochs} epochs over the training images. Epoch {epoch} was kept: it has the largest accuracy on "
        "validation images, {accuracy}.",
        "{epochs} époques sur les images d’entraînement. L’époque {epoch} a été gardée : elle a la plus "
        "grande exactitude sur les images de validation, {accuracy}.",
    ),
    "training.last": (
        "{epochs} epochs over the training images. The last one was kept, because there were no validation "
        "images to choose by.",
        "{epochs} époques sur les images d’entraînement. La dernière a été gardée, faute d’images de "
        "validation pour choisir.",
    ),
    "training.mixup": (
        "Look at the validation line. The training line zigzags, because training used mixup: each epoch "
        "blends pairs of images by random weights and counts the heavier of the two labels, so its accuracy "
        "says little about the head. A click in the legend shows it.",
        "Regardez la ligne de validation. La ligne d’entraînement zigzague, car l’entraînement utilise "
        "mixup : chaque époque mélange des paires d’images avec des poids au hasard et compte la plus "
        "lourde des deux étiquettes ; son exactitude dit peu du modèle. Un clic dans la légende l’affiche.",
    ),
    "training.accuracy": ("accuracy of the images", "exactitude des images"),
    "training.loss": ("loss (lower is better)", "perte (à minimiser)"),
    "training.epoch": ("epoch", "époque"),
    "training.kept": ("kept", "gardée"),
    "training.alt": (
        "{what} over {epochs} epochs; at the end {last}.",
        "{what} sur {epochs} époques ; à la fin {last}.",
    ),
    "confidence.title": ("How confidence is computed", "Comment la confiance est calculée"),
    "confidence.temperature": (
        "The head gives each category a probability. A temperature of {temperature} corrects these first: "
        "above 1, the head was too certain; below 1, not certain enough.",
        "Le modèle donne à chaque catégorie une probabilité. Une température de {temperature} les corrige "
        "d’abord : au-dessus de 1, le modèle était trop sûr ; en dessous de 1, pas assez.",
    ),
    "confidence.logistic": (
        "A logistic model then computes from the evidence the probability that the decision is correct. "
        "With a positive coefficient, confidence grows with the evidence; with a negative one, it falls. "
        "All are per standard deviation of the evidence, so their sizes can be compared.",
        "Un modèle logistique calcule ensuite, à partir des indices, la probabilité que la décision soit "
        "correcte. Avec un coefficient positif, la confiance croît avec l’indice ; avec un négatif, elle "
        "baisse. Tous valent pour un écart-type de l’indice : leurs tailles se comparent.",
    ),
    "confidence.effects": (
        "Each predicted category adds an effect of its own, by how often decisions for it were correct. The "
        "standard deviation of these effects is {spread}.",
        "Chaque catégorie prédite ajoute un effet propre, selon la fréquence des décisions correctes pour "
        "elle. L’écart-type de ces effets est {spread}.",
    ),
    "confidence.importances": ("Importances of the evidence", "Importance des indices"),
    "confidence.boosting": (
        "Gradient boosting, {trees} small decision trees, then computes the probability anew from the "
        "evidence and from the logistic model. The importance of a piece of evidence is its share in what "
        "the trees gained.",
        "Le gradient boosting, {trees} petits arbres de décision, recalcule ensuite la probabilité à partir "
        "des indices et du modèle logistique. L’importance d’un indice est sa part dans le gain des arbres.",
    ),
    "confidence.unboosted": (
        "The {products} products of FIT were too few for boosting.",
        "Les {products} produits de FIT étaient trop peu pour le boosting.",
    ),
    "confidence.plain": (
        "Confidence is then the probability of the most likely category, unchanged. The {products} products "
        "of FIT were too few to fit a model.",
        "La confiance est alors la probabilité de la catégorie la plus probable, inchangée. Les {products} "
        "produits de FIT étaient trop peu pour ajuster un modèle.",
    ),
    "evidence.logit_p1": (
        "probability of the most likely category",
        "probabilité de la catégorie la plus probable",
    ),
    "evidence.log_p1_over_p2": ("its lead over the second category", "son avance sur la deuxième catégorie"),
    "evidence.entropy": (
        "spread of the probability over all categories",
        "dispersion de la probabilité sur toutes les catégories",
    ),
    "evidence.logit_parent_mass": (
        "probability of the whole branch around the category",
        "probabilité de toute la branche autour de la catégorie",
    ),
    "evidence.log_category_size": (
        "training products of the category",
        "produits d’entraînement de la catégorie",
    ),
    "evidence.log_images": ("photos of the product", "photos du produit"),
    "evidence.max_logit_pnorm": (
        "how far the category stands out from all others",
        "combien la catégorie se détache de toutes les autres",
    ),
    "evidence.logistic": ("what the logistic model says", "ce que dit le modèle logistique"),
    "evidence.category_effect": (
        "how often decisions for the category were correct",
        "fréquence des décisions correctes pour la catégorie",
    ),
    "evidence.intercept": ("intercept, before any evidence", "constante, avant tout indice"),
    "views.title": ("How photos are looked at", "Comment les photos sont regardées"),
    "views.text": (
        "Predictions are made from these views of each photo:",
        "Les prédictions sont faites à partir de ces vues de chaque photo :",
    ),
    "views.averaged": (
        "The head reads their mean.",
        "Le modèle lit leur moyenne.",
    ),
    "views.cascade": (
        "The first one decides about products whose most likely category it gives a probability of {limit} "
        "or more. All of them decide about the others: {share} of the products that this limit was chosen "
        "on.",
        "La première décide pour les produits dont elle donne à la catégorie la plus probable une "
        "probabilité de {limit} ou plus. Toutes décident pour les autres : {share} des produits sur lesquels "
        "cette limite a été choisie.",
    ),
    "settings.title": ("Settings", "Réglages"),
    "settings.text": (
        "The values that this run used, also where the setting was left open.",
        "Les valeurs que ce lot a utilisées, aussi là où le réglage était laissé ouvert.",
    ),
    "settings.detected": ("detected", "détecté"),
    "settings.unused": ("not used", "non utilisé"),
    # Certificate
    "certificate.title": ("The certificate in use", "Le certificat en usage"),
    "certificate.text": (
        "The threshold was chosen on products that were used for nothing else. If this were repeated many "
        "times, at most {delta} of the chosen thresholds would break the promise.",
        "Le seuil a été choisi sur des produits qui n’ont servi à rien d’autre. Si l’on recommençait de "
        "nombreuses fois, au plus {delta} des seuils choisis ne tiendraient pas la promesse.",
    ),
    "certificate.none": (
        "No threshold is certified. Certification products are a share of the validation products: a larger "
        "catalogue brings more of them.",
        "Aucun seuil n’est certifié. Les produits de certification sont une part des produits de validation "
        ": un plus grand catalogue en apporte davantage.",
    ),
    "certificate.target": ("Promised precision", "Précision promise"),
    "certificate.certainty": ("Certainty", "Certitude"),
    "certificate.threshold": ("Threshold", "Seuil"),
    "certificate.products": ("Certification products", "Produits de certification"),
    "certificate.accepted": ("Accepted", "Acceptés"),
    "certificate.errors": ("Wrong among the accepted", "Faux parmi les acceptés"),
    "certificate.precision": ("Precision, as measured", "Précision, mesurée"),
    "certificate.lower": ("Precision, lower bound", "Précision, borne inférieure"),
    "certificate.more": ("More products needed", "Produits manquants"),
    # Columns
    "col.target": ("Promise", "Promesse"),
    "col.state": ("State", "État"),
    "col.threshold": ("Threshold", "Seuil"),
    "col.cert_acceptance": ("Accepted, when certified", "Acceptés, à la certification"),
    "col.measured_acceptance": ("Accepted, {part}", "Acceptés, {part}"),
    "col.measured_precision": ("Correct of these", "Corrects parmi eux"),
    "col.precision_lower": ("Lower bound when certified", "Borne inférieure à la certification"),
    "col.more": ("More certification products needed", "Produits de certification manquants"),
    "col.level": ("Level", "Niveau"),
    "col.decided": ("Products that stop here", "Produits qui s’arrêtent ici"),
    "col.decided_precision": ("Correct of these", "Corrects parmi eux"),
    "col.level_promise": ("Promised", "Promis"),
    "col.top1": ("Correct, if all were decided here", "Corrects, si tout était décidé ici"),
    "col.top5": ("Correct one among the first five", "Le correct parmi les cinq premiers"),
    "col.summed1": ("Correct, categories summed", "Corrects, catégories additionnées"),
    "col.agrees": ("Agrees with the category", "Concorde avec la catégorie"),
    "col.category": ("Category", "Catégorie"),
    "col.change": ("Change", "Changement"),
    "col.new_category": ("Category now", "Catégorie actuelle"),
    "col.products_before": ("Training products before", "Produits d’entraînement avant"),
    "col.products_now": ("Products now", "Produits maintenant"),
    "col.waits": ("Waits for evidence", "Attend des preuves"),
    "col.category_id": ("Category id", "Identifiant de la catégorie"),
    "col.status": ("Status", "Statut"),
    "col.train_products": ("Training products", "Produits d’entraînement"),
    "col.products": ("{part} products", "Produits de {part}"),
    "col.errors": ("Wrong", "Faux"),
    "col.found": ("Found", "Trouvés"),
    "col.predicted": ("Predicted", "Prédits"),
    "col.predicted_correct": ("Correct, of the predicted", "Corrects, des prédits"),
    "col.estimate": ("Estimate", "Estimation"),
    "col.interval": ("Interval", "Intervalle"),
    "col.accepted": ("Accepted", "Acceptés"),
    "col.accepted_correct": ("Correct, of the accepted", "Corrects, des acceptés"),
    "col.curve": ("Curve", "Courbe"),
    "col.true": ("True category", "Vraie catégorie"),
    "col.predicted_category": ("Predicted category", "Catégorie prédite"),
    "col.count": ("Products", "Produits"),
    "col.photo": ("Photo", "Photo"),
    "col.photo_confused": ("Confused", "Confondu"),
    "col.photo_typical": ("Typical", "Typique"),
    "col.product": ("Product", "Produit"),
    "col.confidence": ("Confidence", "Confiance"),
    "col.was_accepted": ("Accepted", "Accepté"),
    "col.label_wrong": ("Label wrong, probability", "Étiquette fausse, probabilité"),
    "col.given": ("Given category", "Catégorie donnée"),
    "col.proposed": ("Proposed category", "Catégorie proposée"),
    "col.reason": ("Reason", "Raison"),
    "col.part": ("Part", "Partie"),
    "col.department": ("Department", "Rayon"),
    "col.acceptance": ("Acceptance rate", "Taux d’acceptation"),
    "col.precision": ("Precision", "Précision"),
    "col.p": ("p-value", "Valeur p"),
    "col.weekly_accepted": ("Automatic a week", "Automatiques par semaine"),
    "col.weekly_wrong": ("Wrong a week, about", "Faux par semaine, environ"),
    "col.weekly_people": ("For people a week", "Pour des personnes par semaine"),
    "col.hours": ("Hours saved a week", "Heures économisées par semaine"),
    "col.money": ("Saved a week, {currency}", "Économie par semaine, {currency}"),
    "col.images": ("Images", "Images"),
    "col.number": ("Number", "Nombre"),
    "col.share": ("Share", "Part"),
    "col.why": ("Reason", "Raison"),
    "col.catalogue": ("Products in the catalogue", "Produits dans le catalogue"),
    "col.measured": ("{part} products", "Produits de {part}"),
    "col.taken": ("Accepted elsewhere", "Acceptés ailleurs"),
    "col.parent_correct": ("In the correct branch", "Dans la bonne branche"),
    "col.figure": ("Figure", "Chiffre"),
    "col.before": ("Before", "Avant"),
    "col.after": ("Now", "Maintenant"),
    "col.difference": ("Difference, points", "Différence, points"),
    "col.difference_interval": ("Interval, points", "Intervalle, points"),
    "col.gained": ("Became correct", "Devenus corrects"),
    "col.lost": ("Became wrong", "Devenus faux"),
    "col.verdict": ("Verdict", "Verdict"),
    "col.before_category": ("Before", "Avant"),
    "col.after_category": ("Now", "Maintenant"),
    "col.evidence": ("Evidence", "Indice"),
    "col.importance": ("Importance", "Importance"),
    "col.coefficient": ("Coefficient", "Coefficient"),
    "col.name": ("Name", "Nom"),
    "col.part_name": ("Part", "Partie"),
    "col.part_products": ("Products", "Produits"),
    "col.everything": ("Correct, everything accepted", "Corrects, tout accepté"),
    "col.part_accepted": ("Accepted", "Acceptés"),
    "col.part_accepted_correct": ("Correct, of the accepted", "Corrects, des acceptés"),
    "col.could": ("Measured acceptance at {target}", "Acceptation mesurée à {target}"),
    "col.corrections": ("Corrections", "Corrections"),
    "col.sellers_reached": ("Sellers that made so many", "Vendeurs qui en ont fait autant"),
    "col.base_correct": ("Correct without corrections", "Corrects sans corrections"),
    "col.adapted_correct": ("Correct with corrections", "Corrects avec corrections"),
    "col.gain": ("Gain, points", "Gain, points"),
    "col.decided_by": ("Decisions", "Décisions"),
    "col.seller": ("Seller", "Vendeur"),
    "col.judged": ("Judged predictions", "Prédictions jugées"),
    "col.setting": ("Setting", "Réglage"),
    "col.value": ("Value", "Valeur"),
    # Tables
    "table.rows": ("{shown} of {all} rows", "{shown} lignes sur {all}"),
    "js.rows": ("{shown} of {fit} rows", "{shown} lignes sur {fit}"),
    "js.rows.filtered": (
        "{shown} of {fit} rows that fit, {all} in all",
        "{shown} lignes sur {fit} qui conviennent, {all} en tout",
    ),
    "js.find": ("Find", "Chercher"),
    "js.more": ("Show {count} more", "Afficher {count} de plus"),
    "js.all": ("Show all", "Tout afficher"),
    "js.fewer": ("Show fewer", "Afficher moins"),
    "js.csv": ("Save as CSV", "Enregistrer en CSV"),
    "js.everything": ("All", "Toutes"),
    "js.branch": ("Branch, level {level}", "Branche, niveau {level}"),
    "js.status": ("Status", "Statut"),
    "js.photo": ("Photo of product {product}", "Photo du produit {product}"),
    "js.photo_map": (
        "Where the network looked in the photo of product {product}",
        "Où le réseau a regardé dans la photo du produit {product}",
    ),
    "js.sideways": (
        "There are more columns: scroll sideways →",
        "Il y a d’autres colonnes : faites défiler →",
    ),
    "js.lower": ("lower", "borne inférieure"),
    "js.upper": ("upper", "borne supérieure"),
    "js.yes": ("yes", "oui"),
    "js.no": ("no", "non"),
    # Two runs
    "two.title": ("Runs {run} and {other}", "Lots {run} et {other}"),
    "two.headline": ("Two runs side by side: {run} and {other}", "Deux lots côte à côte : {run} et {other}"),
    "two.text": (
        "Each with its own threshold, on its own {part} products. The curves, the targets and the "
        "categories stand side by side.",
        "Chacun avec son seuil, sur ses propres produits de {part}. Les courbes, les cibles et les "
        "catégories sont côte à côte.",
    ),
    "two.same": (
        "The {products} products that both runs measured",
        "Les {products} produits que les deux lots ont mesurés",
    ),
    "two.no_same": (
        "The two runs measured no product in common.",
        "Les deux lots n’ont mesuré aucun produit commun.",
    ),
    "two.figures": ("The most important figures", "Les chiffres les plus importants"),
    "two.settings": ("Settings that differ", "Réglages qui diffèrent"),
    "two.settings.none": ("All settings are the same.", "Tous les réglages sont les mêmes."),
    "two.categories": ("Categories, side by side", "Catégories, côte à côte"),
    "two.in": ("{column}, {run}", "{column}, {run}"),
    "two.certified": ("Certified", "Certifié"),
    "two.measured": ("Products measured ({part})", "Produits mesurés ({part})"),
    "two.learnt": ("Categories learnt", "Catégories apprises"),
}
