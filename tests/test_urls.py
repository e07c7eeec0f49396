"""Photos by URL: each is fetched once; what cannot be had is counted with its reason."""

import ipaddress
import shutil
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
from catalogues import photo, write_manifest
from object_store import object_store
from test_cli import error_line, run
from web_server import serving

from features.storage.paths import any_path, sizes
from pipeline.sources import addresses, url_cache, urls, web
from pipeline.sources.addresses import NotAllowed, checked_sockets, is_public
from pipeline.sources.urls import Fetching, fetch_urls


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Fetches paths of the server: path → (reason or bytes, detail)."""
    monkeypatch.setattr(web, "FIRST_WAIT", 0.01)

    def get(*paths, **settings):
        fetching = Fetching(str(tmp_path / "cache"), **{"allowed": "any", "retries": 2} | settings)
        given = [path if "://" in path else server.url + path for path in paths]
        found = list(fetch_urls(given, fetching, "unit-0"))
        assert [one.url for one in found] == given
        return [(one.reason or one.data, one.detail) for one in found]

    return get


def test_photos_come_in_order_and_one_that_is_given_twice_is_fetched_once(server, fetch):
    paths = ["/slow/1.jpg", "/photo/2.jpg", "/gone", "/photo/3.jpg", "/photo/2.jpg", "/gone"]
    found = [photo(1), photo(2), "missing", photo(3), photo(2), "missing"]
    assert [data for data, _ in fetch(*paths)] == found
    assert set(server.counts.values()) == {1}


def test_a_second_reading_takes_photos_from_the_cache_and_requests_failures_again(server, fetch):
    paths = ["/photo/1.jpg", "/broken/1/2.jpg", "/photo/3.jpg"]
    assert [data for data, _ in fetch(*paths, retries=0)] == [photo(1), "unreachable", photo(3)]
    assert [data for data, _ in fetch(*paths, retries=0)] == [photo(1), photo(2), photo(3)]
    assert server.counts == {"/photo/1.jpg": 1, "/broken/1/2.jpg": 2, "/photo/3.jpg": 1}


def test_photos_that_do_not_fit_into_memory_wait_in_the_cache(server, fetch, monkeypatch):
    for module in (web, urls):
        monkeypatch.setattr(module, "HELD_BYTES", 2000)  # two photos
    paths = ["/slow/0.jpg", *(f"/photo/{number}.jpg" for number in range(1, 50))]
    assert [data for data, _ in fetch(*paths, concurrency=4)] == [photo(number) for number in range(50)]
    assert set(server.counts.values()) == {1}


def test_photos_of_which_the_first_is_slow_are_kept_when_the_reading_stops(server, tmp_path):
    given = [f"{server.url}/slow/0.jpg", *(f"{server.url}/photo/{number}.jpg" for number in range(1, 20))]
    fetching = Fetching(str(tmp_path), "any")
    reading = fetch_urls(given, fetching, "u")
    next(reading)
    reading.close()
    assert len(list(fetch_urls(given, fetching, "u"))) == 20
    assert set(server.counts.values()) == {1}


def test_an_address_goes_out_as_it_is_written(server, fetch):
    signed = "/photo/a%2Fb%7E%c3%a9/1.jpg?signature=%2B%3d+==&empty="
    assert fetch(signed, "/photo/Café au lait/2.jpg") == [(photo(1), ""), (photo(2), "")]
    assert set(server.paths) == {signed, "/photo/Caf%C3%A9%20au%20lait/2.jpg"}


def test_connections_are_kept_and_no_more_requests_run_at_a_time_than_said(server, fetch):
    server.delay = 0.01
    found = fetch(*(f"/photo/{number}.jpg" for number in range(60)), concurrency=5)
    assert [data for data, _ in found] == [photo(number) for number in range(60)]
    assert server.most == 5
    assert server.connections <= 10


def test_what_answers_404_or_410_is_missing_and_is_not_tried_again(server, fetch):
    assert fetch("/gone", "/deleted") == [("missing", "status 404"), ("missing", "status 410")]
    assert server.counts == {"/gone": 1, "/deleted": 1}


def test_redirects_are_followed_within_limits(server, fetch):
    assert fetch("/moved/5") == [(photo(0), "")]
    assert fetch("/moved/6", "/round") == [("unreachable", "over 5 redirects")] * 2


def test_an_overloaded_server_is_tried_again_when_it_says(server, fetch):
    started = time.monotonic()
    assert fetch("/busy/1/1.jpg", retries=0) == [(photo(1), "")]  # it said when: that is no failed try
    assert time.monotonic() - started > 0.9
    assert fetch("/broken/2/1.jpg", "/broken/3/1.jpg") == [(photo(1), ""), ("unreachable", "status 500")]
    assert server.counts["/broken/3/1.jpg"] == 3


def test_a_server_that_wants_no_requests_gets_none_and_does_not_hold_up_another_one(server, fetch):
    with serving() as other:
        paths = ["/busy/1/1.jpg", "/photo/2.jpg", f"{other.url}/photo/3.jpg", f"{other.url}/photo/4.jpg"]
        started = time.monotonic()
        fetch(*paths, concurrency=1)
        assert sorted(server.paths[1:]) == ["/busy/1/1.jpg", "/photo/2.jpg"]
        assert other.ended[-1] - started < 0.9 < server.ended[1] - started


def test_a_server_that_says_now_for_ever_is_given_up(server, fetch, monkeypatch):
    monkeypatch.setattr(web, "PATIENCE", 0.1)
    assert fetch("/now/1.jpg") == [("unreachable", "status 429")]
    assert 5 < server.counts["/now/1.jpg"] < 15


def test_a_wait_may_be_a_number_or_a_date():
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))
    assert 55 < web._wait_named(soon) < 61


def test_a_server_that_cuts_off_drips_or_refuses_is_given_up(server, fetch):
    found = fetch("/cut/1.jpg", "/drip", "/secret", timeout=0.6, retries=1)
    assert [reason for reason, _ in found] == ["unreachable"] * 3
    assert found[1][1] == "no whole answer in 0.6 s"
    assert found[2][1] == "status 403"
    assert server.counts == {"/cut/1.jpg": 2, "/drip": 2, "/secret": 1}


def test_after_a_server_that_names_too_few_bytes_the_next_photo_is_whole(fetch):
    (half, _), *others = fetch("/short/1.jpg", "/photo/2.jpg", "/photo/3.jpg", concurrency=1)
    assert half == photo(1)[: len(photo(1)) // 2]  # which ingest refuses as it does every cut photo
    assert others == [(photo(2), ""), (photo(3), "")]


def test_a_photo_of_too_many_bytes_is_not_read_on(server, fetch):
    assert fetch("/photo/1.jpg", max_bytes=100) == [("too_large", "over 100 bytes")]
    assert fetch("/endless", max_bytes=2**20) == [("too_large", "over 1048576 bytes")]


def test_a_server_that_is_not_there_is_unreachable(fetch):
    (found,) = fetch("http://127.0.0.1:9/1.jpg", retries=0)
    assert found[0] == "unreachable" and "127.0.0.1:9" in found[1]
    (found,) = fetch("http://nowhere.invalid/1.jpg", retries=0)
    assert found[0] == "unreachable"


PRIVATE = [
    *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1"),
    *("::1", "::", "fe80::1", "fec0::1", "fd00::1", "ff0e::1", "::ffff:127.0.0.1", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
]


def test_addresses_of_the_machine_and_of_private_networks_are_not_public():
    assert not any(is_public(ipaddress.ip_address(text)) for text in PRIVATE)
    assert all(is_public(ipaddress.ip_address(text)) for text in ("93.184.216.34", "2606:2800:220:1::1"))


LOCAL = [
    *("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0", "[::ffff:127.0.0.1]", "x:y@127.0.0.1"),
    *("①②⑦.⓪.⓪.①", "127。0。0。1", "ⓛocalhost"),  # which become digits and letters on their way
]


@pytest.mark.parametrize("host", LOCAL)
def test_the_machine_itself_gets_no_request_unless_any_address_is_allowed(server, fetch, host):
    port = server.server_address[1]
    ((reason, detail),) = fetch(f"http://{host}:{port}/photo/1.jpg", allowed="public")
    assert reason == "missing"
    allows = "is no public address; ingest.urls=any allows"
    assert allows in detail or "not a canonical IPv4 address" in detail
    assert server.connections == 0


def test_a_name_with_a_private_address_among_public_ones_gets_no_request(server, fetch, monkeypatch):
    def found(host, port, *_, **__):
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("93.184.216.34", "127.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    ((reason, detail),) = fetch("http://shop.example/1.jpg", allowed="public")
    assert reason == "missing" and detail.startswith("127.0.0.1 is no public address")


def test_no_socket_is_made_for_a_private_address_whatever_was_checked_before():
    with pytest.raises(NotAllowed):
        checked_sockets("public")((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80)))
    checked_sockets("any")((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))).close()


def test_a_redirect_to_the_machine_itself_is_not_followed(server, fetch, monkeypatch):
    # the first address counts as a public one, as another server's would be
    monkeypatch.setattr(
        addresses, "is_public", lambda address: str(address) == "127.0.0.1" or is_public(address)
    )
    port = server.server_address[1]
    targets = [f"http://127.0.0.2:{port}/photo/1.jpg", "http://10.0.0.1/", "file:///etc/passwd", "ftp://a/b"]
    for target in targets:
        ((reason, _),) = fetch(f"/to?{target}", allowed="public")
        assert reason == "missing", target
    assert not any(path.startswith("/photo") for path in server.paths)


def test_photos_from_private_addresses_are_not_read_from_the_cache_by_a_run_that_allows_public_ones(fetch):
    assert fetch("/photo/1.jpg", allowed="any") == [(photo(1), "")]
    assert fetch("/photo/1.jpg", allowed="public")[0][0] == "missing"


@pytest.mark.parametrize(
    "url", ["https://", "http://", "http://[", "http://a b/", "http://:80/", "http:///x"]
)
def test_what_is_no_web_address_is_missing(fetch, url):
    ((reason, detail),) = fetch(url, retries=0)
    assert reason in ("missing", "unreachable") and detail


# ---- through the command line


def ingest(source, workspace, *arguments):
    sets = ["ingest.urls=any", "ingest.max_rejected=0.5", "ingest.url_retries=0"]
    options = [option for text in sets for option in ("--set", text)]
    return run("ingest", str(source), "--workspace", str(workspace), "--run", "r", *options, *arguments)


def catalogue(folder, server, paths=(), count=44):
    """A manifest of two categories, and `paths` besides."""
    rows = [
        {"product_id": f"p{n}", "image": f"{server.url}/photo/{n}.jpg", "category": "AB"[n % 2]}
        for n in range(count)
    ]
    rows += [
        {"product_id": f"q{n}", "image": server.url + path, "category": "A"} for n, path in enumerate(paths)
    ]
    return write_manifest(folder / "shop.csv", rows)


def account(workspace):
    records = workspace / "runs" / "r" / "records"
    images, rejects = (pd.read_parquet(records / f"{name}.parquet") for name in ("images", "rejects"))
    return len(images), rejects.set_index("product_id")["reason"].to_dict()


def test_a_catalogue_of_urls_is_fetched_once_for_both_passes_and_the_account_closes(server, tmp_path):
    source = catalogue(tmp_path, server, ["/gone", "/page", "/broken/9/1.jpg"])
    assert ingest(source, tmp_path / "W") == 0
    images, rejects = account(tmp_path / "W")
    assert rejects == {"q0": "missing", "q1": "not_an_image", "q2": "unreachable"}
    assert images + len(rejects) == 47
    assert set(server.counts.values()) == {1}
    named = pd.read_parquet(tmp_path / "W/runs/r/records/rejects.parquet")["source"].tolist()
    assert named == [f"{server.url}{path}" for path in ("/gone", "/page", "/broken/9/1.jpg")]


def test_the_same_command_requests_what_was_unreachable_again_and_nothing_else(server, tmp_path, caplog):
    source = catalogue(tmp_path, server, ["/broken/2/1.jpg"])
    run_of_the_week = tmp_path / "W/runs/r"
    manifest, fetched = run_of_the_week / "records/manifest.json", run_of_the_week / "records.fetched"
    assert ingest(source, tmp_path / "W") == 0
    assert account(tmp_path / "W")[1] == {"q0": "unreachable"} and fetched.is_dir()
    assert "1 photos could not be reached; the same command tries them again" in caplog.text
    first = manifest.read_bytes()
    assert ingest(source, tmp_path / "W") == 0
    assert manifest.read_bytes() == first, "nothing new came: what is made from the records stays"
    assert ingest(source, tmp_path / "W") == 0
    assert account(tmp_path / "W") == (45, {}) and not fetched.exists()
    assert server.counts.pop("/broken/2/1.jpg") == 3
    assert set(server.counts.values()) == {1}
    assert ingest(source, tmp_path / "W") == 0  # unchanged: nothing is requested
    assert set(server.counts.values()) == {1}


def test_a_server_that_is_down_stops_the_run_and_what_was_fetched_stays(server, tmp_path, capsys):
    source = catalogue(tmp_path, server)
    server.down = True
    assert ingest(source, tmp_path / "W") == 4
    assert "44 of 44 images rejected (unreachable 44)" in error_line(capsys)
    server.down = False
    assert ingest(source, tmp_path / "W") == 0
    assert account(tmp_path / "W") == (44, {})
    assert set(server.counts.values()) == {2}


def test_photos_that_have_gone_from_the_cache_are_fetched_again(server, tmp_path):
    source = catalogue(tmp_path, server, ["/broken/1/1.jpg"] * 5)
    refused = ("--set", "ingest.max_rejected=0")
    assert ingest(source, tmp_path / "W", *refused) == 4
    shutil.rmtree(tmp_path / "W/runs/r/records.fetched")
    assert ingest(source, tmp_path / "W", *refused) == 0
    assert account(tmp_path / "W") == (49, {})
    assert set(server.counts.values()) == {2}


def job(source, workspace, *settings):
    """The arguments of a command of its own."""
    command = ["ingest", str(source), "--workspace", str(workspace), "--run", "r"]
    for setting in ("urls=any", *settings):
        command += ["--set", f"ingest.{setting}"]
    return command


@pytest.mark.slow
def test_a_killed_run_fetches_no_more_again_than_it_had_not_written(server, tmp_path):
    server.delay = 0.02
    source = catalogue(tmp_path, server, count=600)
    command = job(source, tmp_path / "W", "url_concurrency=8", "unit_images=300")
    program = "import sys; from pipeline.cli import main; main(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", program, *command], stderr=subprocess.DEVNULL)
    while sum(server.counts.values()) < 400 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.2)
    assert 0 < sum(server.counts.values()) < 600
    server.delay = 0.0
    assert run(*command) == 0
    again = sum(server.counts.values()) - 600
    units = 2  # each loses two chunks, and what is on its way or has just arrived
    assert again <= units * (2 * url_cache.CHUNK_IMAGES + 2 * 8)


@pytest.mark.slow
def test_a_workspace_on_an_object_store_keeps_what_was_fetched(server, tmp_path):
    source = catalogue(tmp_path, server, ["/broken/1/1.jpg"])
    with object_store() as bucket:
        fetched = any_path(f"{bucket}/W/runs/r/records.fetched")
        assert ingest(source, f"{bucket}/W") == 0
        assert len(sizes(fetched)) == 2
        assert ingest(source, f"{bucket}/W") == 0
        assert not sizes(fetched)
    assert server.counts.pop("/broken/1/1.jpg") == 2
    assert set(server.counts.values()) == {1}


def test_categorize_reads_urls_and_requests_the_unreachable_again(server, tmp_path, workspace):
    source = catalogue(tmp_path, server, ["/broken/1/1.jpg"], count=4)
    output = tmp_path / "d.csv"
    command = ["categorize", str(source), "--workspace", str(workspace), "--output", str(output)]
    for setting in ("urls=any", "url_retries=0", "max_rejected=0.5"):
        command += ["--set", f"ingest.{setting}"]
    assert run(*command) == 0
    assert pd.read_csv(output).set_index("product_id")["status"]["q0"] == "unreadable"
    assert run(*command) == 0
    assert "unreadable" not in pd.read_csv(output)["status"].tolist()
    assert server.counts.pop("/broken/1/1.jpg") == 2
    assert set(server.counts.values()) == {1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["W", "d.csv", "d.rejects.parquet", "shop.csv"]
