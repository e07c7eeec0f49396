"""Dense layers as convolutions: one pass over a larger image gives one answer for each location.

    dense         map (n, h, w, c) ── Flatten ──────────► Dense(u)            (n, u)
    convolutional map (n, H, W, c) ── convolution h × w ► convolution 1 × 1   (n, H - h + 1, W - w + 1, u)

The kernel of the first convolution covers the map of the training size, so that a map of this size gives
one cell with the same answer (Sermanet et al., "OverFeat", ICLR 2014; lecture EE-559 7.2, Fleuret, 2018).

Global average pooling is linear, so a head of one Dense layer may be applied before or after it: the mean of
the logits at the locations is the logits of the mean. With ReLU, softmax or another non-linear layer in the
head the two differ, except where the map has one cell. `pool` says which is computed:

    before   the mean of each window of the training map's size, then the head: the dense answer of the window
    after    the head at each location: where the network sees which category
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from features.errors import ShelfmarkError
from models.heads.architectures import SET, Head
from models.heads.hierarchy import leaf_log_probabilities
from models.heads.tensors import Tensor

if TYPE_CHECKING:
    import keras

Pool = Literal["before", "after"]
Cover = tuple[int, int]  # (h, w) cells of a map that stand for one vector of h · w · c numbers
ONE_CELL: Cover = (1, 1)
POOLINGS = {"GlobalAveragePooling2D": "AveragePooling2D", "GlobalMaxPooling2D": "MaxPooling2D"}
ADAPTIVE = "AdaptiveAveragePooling2D"
ANY_COVER = (  # layers that do the same to each number
    *("Dropout", "GaussianNoise", "GaussianDropout", "Activation", "ReLU", "LeakyReLU", "ELU", "Identity"),
    *("ActivityRegularization", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
)
# Operations that have a fixed height and width; Einsum: cells averaged from maps of another size
OF_ONE_SIZE = ("Resizing", "CenterCrop", "RandomCrop", "Einsum")


def convolutionize(model: "keras.Model", pool: Pool = "before") -> "keras.Model":
    """Returns a model that reads images of any size and gives the dense model's answer at each location.

    It is for inference. It shares all layers with the dense model that need not change.

    Args:
        model: functional or Sequential, of one input (n, h, w, c) of fixed size; models may be inside it. Its
            maps end in Flatten, in a global pooling, or in a reshape of one cell; dense layers follow.
        pool: where a global pooling is the end of the maps, whether the head comes after the mean (or
            maximum) of each window of the training map's size, or at each location without pooling.

    Returns:
        A model (n, H, W, c) → (n, rows, columns, u) of each output (n, u) of the dense one; one row and
        column at the training size, if `pool` is "before".

    Raises:
        ShelfmarkError: a layer cannot be converted; the message names it.
    """
    return _Conversion(pool).convert(model, None)


def convolutional_head(head: Head) -> "keras.Model":
    """Returns a trained head as 1×1 convolutions: (n, h, w, d) last map → (n, h, w, nodes) logits.

    At each location they are what the head says about the bottleneck that the location alone would give. Of a
    flat head and a set head it is one output, of the others a list of outputs: each level, coarse to fine. A
    set head is read as for a product with one photo: the maximum over one image is this image.

    Args:
        head: over bottlenecks of d numbers.
    """
    import keras

    cells = keras.Input((None, None, head.shape.width), dtype="float32", name="map")
    conversion = _Conversion("before")
    if head.shape.kind == SET:
        x = cells
        for layer in head.model.layers:
            if type(layer).__name__ not in ("InputLayer", "Reshape", "GlobalMaxPooling1D"):
                x = conversion.layer(layer, x, ONE_CELL)
        return keras.Model(cells, x, name="convolutional_head")
    dense = head.model
    if head.shape.hierarchical:
        names = [f"scores_{level}" for level in range(1, len(head.shape.parents) + 1)]
        dense = keras.Model(dense.inputs, [dense.get_layer(name).output for name in names])
    outputs = conversion.convert(dense, ONE_CELL)(cells)
    if head.shape.hierarchical:
        scores = outputs if isinstance(outputs, list) else [outputs]
        outputs = leaf_log_probabilities(scores, head.shape.parents)
    return keras.Model(cells, outputs, name="convolutional_head")


class _Conversion:
    """Runs through the graph of a dense model, with maps in the place of vectors.

    `covers` says what a new tensor stands for. None: the same as in the dense model. (h, w): there it is a
    vector of h · w · c numbers, here a map of c channels, and each window of h · w cells holds such a vector.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.covers: dict[int, Cover | None] = {}
        self.kept: list[Tensor] = []  # while they are kept, no other tensor has their id

    def convert(self, model: "keras.Model", cover: Cover | None) -> "keras.Model":
        """The convolutional model, for an input of the given cover; its outputs are in `covers`."""
        import keras

        if isinstance(model, keras.Sequential) and model.built:
            model = keras.Model(model.inputs, model.outputs, name=model.name)
        if not hasattr(model, "operations"):
            raise _refusal(model, "its layers are not known", "a functional model, or a built Sequential one")
        shape = tuple(model.inputs[0].shape)
        if len(model.inputs) != 1 or (cover is None and len(shape) != 4):
            raise _refusal(
                model, f"{len(model.inputs)} inputs, the first {shape}", "one input of images (n, h, w, c)"
            )
        maps = keras.Input((None, None, shape[-1] // _cells(cover)), dtype=model.inputs[0].dtype)
        self._note(maps, cover)
        converted: keras.Model = keras.models.clone_model(
            model,
            input_tensors=keras.tree.map_structure(lambda _: maps, model.input),
            clone_function=lambda layer: layer,
            call_function=functools.partial(self._call, _inner(model)),
        )
        return converted

    def _note(self, tensor: Tensor, cover: Cover | None) -> Tensor:
        self.covers[id(tensor)] = cover
        self.kept.append(tensor)
        return tensor

    def _call(self, inner: set[int], operation: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation of the dense model gives; `inner` is of `_inner`."""
        import keras

        inputs = [one for one in keras.tree.flatten((args, kwargs)) if id(one) in self.covers]
        covers = {self.covers[id(one)] for one in inputs}
        if len(covers) > 1:
            raise _refusal(operation, "it joins maps and vectors", "inputs of one kind")
        cover = covers.pop() if covers else None
        ends = _ends_maps(operation)
        if ends and id(operation) in inner:
            if type(operation).__name__ not in POOLINGS:
                raise _refusal(operation, "its vector goes back into a map", "a vector that stays one")
            ends = False
        if ends or cover is not None or isinstance(operation, keras.Model):
            return self.layer(operation, args[0], cover)
        _require_any_size(operation)
        try:
            outputs = operation(*args, **kwargs)
        except ValueError as error:
            raise _refusal(operation, str(error).splitlines()[0], "a layer for maps of any size") from error
        return keras.tree.map_structure(lambda one: self._note(one, None), outputs)

    def layer(self, layer: Any, x: Any, cover: Cover | None) -> Any:
        """The convolutional form of a layer, applied to maps of the given cover (or to a list of them).

        Raises:
            ShelfmarkError: there is no such form.
        """
        import keras

        kind = type(layer).__name__
        if isinstance(layer, keras.Model):
            model = self.convert(layer, cover)
            outputs = model(x)
            for output, own in zip(keras.tree.flatten(outputs), model.outputs, strict=True):
                self._note(output, self.covers[id(own)])
            return outputs
        if kind in POOLINGS:
            return self._note(self._pooled(layer)(x), None if layer.keepdims else ONE_CELL)
        if kind in ("Flatten", "Reshape", ADAPTIVE):
            return self._note(keras.layers.Identity(name=layer.name)(x), _flattened(layer, cover))
        if kind == "Dense":
            assert cover is not None
            return self._note(_convolution(layer, cover)(x), ONE_CELL)
        if kind in ANY_COVER:
            return self._note(layer(x), cover)
        if kind in OF_A_CELL and cover == ONE_CELL:
            return self._note(OF_A_CELL[kind](layer)(x), cover)
        raise _refusal(layer, f"a {kind} over a vector of a map", f"Dense, {', '.join(ANY_COVER)}")

    def _pooled(self, layer: Any) -> "keras.Layer":
        """What the global pooling at the end of the maps becomes."""
        from keras import layers

        if self.pool == "after":
            return layers.Identity(name=layer.name)
        window = getattr(layers, POOLINGS[type(layer).__name__])
        return window(_map_size(layer), strides=1, padding="valid", name=layer.name)


def _cells(cover: Cover | None) -> int:
    return 1 if cover is None else cover[0] * cover[1]


def _map_size(layer: Any) -> Cover:
    """(h, w) of the map that a layer reads at the training size."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise _refusal(layer, "channels come first", "channels_last")
    height, width = layer.input.shape[1:3]
    if height is None or width is None:
        raise _refusal(layer, "the size of its map is not fixed", "a model built for the training size")
    return height, width


def _flattened(layer: Any, cover: Cover | None) -> Cover | None:
    """The cover after a Flatten, a reshape of one cell, or an adaptive pooling that changes nothing."""
    before, after = tuple(layer.input.shape), tuple(layer.output.shape)
    if cover is None and len(before) == 4:
        size = _map_size(layer)
        if len(after) == 2:
            return size
        if before[1:3] == after[1:3]:
            return None
    elif len(before) == len(after) == 2:
        return cover
    elif cover == ONE_CELL and after[1:-1] == (1, 1):
        return None
    raise _refusal(layer, f"it turns {before} into {after}", "one vector of a map, or one cell of it")


def _convolution(dense: Any, cover: Cover) -> "keras.Layer":
    """The convolution whose kernel covers what the dense layer reads."""
    from keras import layers

    convolution = layers.Conv2D(
        dense.units,
        cover,
        activation=dense.activation,
        use_bias=dense.use_bias,
        dtype=dense.dtype_policy,
        name=dense.name,
    )
    channels = dense.kernel.shape[0] // _cells(cover)
    convolution.build((None, None, None, channels))
    convolution.kernel.assign(dense.kernel.numpy().reshape(*cover, channels, dense.units))
    if dense.use_bias:
        convolution.bias.assign(dense.bias)
    return convolution


def _on_channels(layer: Any, **changed: object) -> "keras.Layer":
    """A layer over vectors, made anew over the channels of maps, with its weights."""
    width = layer.input.shape[-1]
    new = type(layer).from_config(layer.get_config() | changed)
    new.build((None, None, None, width))
    for variable, value in zip(new.variables, layer.variables, strict=True):
        variable.assign(value.numpy().reshape(variable.shape))
    return new


OF_A_CELL: Mapping[str, Callable[[Any], "keras.Layer"]] = {  # layers over a vector that work on each cell
    "BatchNormalization": lambda layer: _on_channels(layer, axis=-1),
    "LayerNormalization": lambda layer: _on_channels(layer, axis=-1),
    "UnitNormalization": lambda layer: _on_channels(layer, axis=-1),
    "Softmax": lambda layer: _on_channels(layer, axis=-1),
    "Concatenate": lambda layer: type(layer)(axis=-1, name=layer.name),
    "PReLU": lambda layer: _on_channels(layer, shared_axes=[1, 2]),
    "Rescaling": lambda layer: layer,
}


def _ends_maps(operation: Any) -> bool:
    """Whether an operation of the dense model turns a map into one vector."""
    kind = type(operation).__name__
    if kind not in (*POOLINGS, "Flatten", "Reshape", ADAPTIVE):
        return False
    return len(operation.input.shape) == 4


def _inner(model: "keras.Model") -> set[int]:
    """Ids of layers whose vector goes back into a map, as the pooling of squeeze-and-excitation blocks."""
    import keras

    readers: dict[int, list[Any]] = {}
    for operation in model.operations:
        if not isinstance(operation, keras.layers.InputLayer):
            for tensor in keras.tree.flatten(operation.input):
                readers.setdefault(id(tensor), []).append(operation)
    inner = set()
    for end in model.operations:
        waiting, seen = [end] if _ends_maps(end) and type(end).__name__ != ADAPTIVE else [], set()
        while waiting:
            outputs = keras.tree.flatten(waiting.pop().output)
            if any(len(one.shape) == 4 and tuple(one.shape[1:3]) != (1, 1) for one in outputs):
                inner.add(id(end))
                break
            following = [reader for one in outputs for reader in readers.get(id(one), ())]
            waiting += [one for one in following if id(one) not in seen]
            seen |= {id(one) for one in following}
    return inner


def _require_any_size(operation: Any) -> None:
    """Refuses what works on maps of one size only.

    Raises:
        ShelfmarkError: the operation is of this kind.
    """
    import keras

    kind = type(operation).__name__
    read = [len(one.shape) for one in keras.tree.flatten(operation.input)]
    written = [len(one.shape) for one in keras.tree.flatten(operation.output)]
    if kind in OF_ONE_SIZE:
        raise _refusal(operation, "it is for maps of one size", "a network without it")
    if any(rank not in (2, 4) for rank in written) or (4 in read and 2 in written and kind not in POOLINGS):
        raise _refusal(operation, "it turns maps into something else", "Flatten or a global pooling")
    if kind in ("PReLU", "LayerNormalization") and 4 in read:
        wide = [variable.shape for variable in operation.variables if len(variable.shape) > 1]
        if any(size > 1 for shape in wide for size in shape[:-1]):
            raise _refusal(operation, "it has a weight for each location", "weights for each channel")


def _refusal(layer: Any, found: str, expected: str) -> ShelfmarkError:
    return ShelfmarkError(
        f"{layer.name}: this {type(layer).__name__} cannot become convolutional ({found}); "
        f"expected {expected}; use the network as it is, or end it before this layer"
    )
