"""A client of shelfmark-serve, with httpx: many products, a deadline, and retries where the service is full.

    python client.py http://127.0.0.1:8000 mug-1=front.jpg,back.jpg mug-2=mug.jpg > decisions.jsonl

    products ─► requests within the service's limits ─► POST /v1/categorize ─► decisions, in the order given
                                               429, 503, no connection: again, after Retry-After
                                               other errors: Refused, with the service's own words

A token, where the service has some, comes from the variable SHELFMARK_TOKEN.
"""

import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

MAX_PRODUCTS = 64  # of a request, as the service's own limit
MAX_BYTES = 60 << 20  # of a request's photos; the service takes 64 MiB, headers of the parts included
REQUEST_S = 30  # the most that a request may ask for: --timeout of the service
RETRY = (429, 503)  # full; not ready, or about to end
WAIT_S = (0.25, 8.0)  # the first wait without a Retry-After, and the longest


@dataclass(frozen=True)
class Product:
    """What is to be categorized: JPEG, PNG or WebP files, 1 to 16, all of one product."""

    product_id: str
    photos: Sequence[Path]
    seller: str | None = None  # whose corrections count


class Refused(Exception):
    """The service will not answer this request: what happened; what was expected; what to do next."""


def categorize(client: httpx.Client, products: Sequence[Product], deadline_s: float = 60) -> list[dict]:
    """Returns a decision for each product, in their order.

    Args:
        client: with the service's address as base_url.
        products: any number of them; each with a product_id.
        deadline_s: for all of them, retries included.

    Raises:
        Refused: the service refuses a request.
        TimeoutError: the time is over.
    """
    end = time.monotonic() + deadline_s
    return [
        decision
        for some in _requests(products)
        for decision in _post(client, some, end)["decisions"]
    ]  # fmt: skip


def _requests(products: Sequence[Product]) -> Iterator[list[Product]]:
    """Yields products in portions that one request may have."""
    some: list[Product] = []
    size = 0
    for product in products:
        more = sum(photo.stat().st_size for photo in product.photos)
        if some and (len(some) == MAX_PRODUCTS or size + more > MAX_BYTES):
            yield some
            some, size = [], 0
        some.append(product)
        size += more
    if some:
        yield some


def _post(client: httpx.Client, products: list[Product], end: float) -> dict:
    """Returns the answer to one request; repeats it until `end`, since a decision changes nothing."""
    files = [
        (f"images.{number}", (photo.name, photo.read_bytes()))
        for number, product in enumerate(products)
        for photo in product.photos
    ]
    texts = {f"product_id.{number}": product.product_id for number, product in enumerate(products)}
    texts |= {f"seller.{n}": product.seller for n, product in enumerate(products) if product.seller}
    wait = WAIT_S[0]
    while (left := end - time.monotonic()) > 0:
        headers = {
            "X-Request-Timeout": f"{min(left, REQUEST_S):.3f}"
        }  # what nobody waits for is not computed
        try:
            answer = client.post("/v1/categorize", files=files, data=texts, headers=headers, timeout=left)
        except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            after = None  # the service starts again, or its balancer asks another one
        except httpx.TimeoutException:
            break
        else:
            if answer.is_success:
                return answer.json()
            if answer.status_code not in RETRY:
                raise Refused(_words(answer))
            after = answer.headers.get("Retry-After")
        pause = float(after) if after else wait
        time.sleep(min(pause * random.uniform(1, 1.25), max(0, end - time.monotonic())))  # not all at once
        wait = min(2 * wait, WAIT_S[1])
    raise TimeoutError("no decision within the time; expected a free service; send less, or give more time")


def _words(answer: httpx.Response) -> str:
    """Returns the detail of a problem (RFC 9457), or what a proxy says instead."""
    try:
        return f"{answer.status_code}: {answer.json()['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code}: {answer.text[:200]}"


def main(arguments: Sequence[str]) -> int:
    """Prints a decision of each product as a line of JSON."""
    url, *given = arguments or [""]
    if not given or not all(name and photos for name, _, photos in (text.partition("=") for text in given)):
        print("usage: python client.py URL PRODUCT_ID=PHOTO[,PHOTO...] ...", file=sys.stderr)
        return 2
    products = [
        Product(product_id, [Path(photo) for photo in photos.split(",")])
        for product_id, _, photos in (text.partition("=") for text in given)
    ]
    token = os.environ.get("SHELFMARK_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers) as client:
            for decision in categorize(client, products):
                print(json.dumps(decision, ensure_ascii=False))
    except (Refused, TimeoutError, httpx.HTTPError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
