"""The examples of docs/deployment.md, each read by its own tool; nginx with real requests.

client ── TLS ── nginx ──┬── unix socket: a service    a small one that says what the test needs;
                         └── unix socket: another      once the real one
"""

import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.__main__ import serve
from serving.connection import ConnectionLimits
from serving.metrics import Metrics
from serving.server import within_files
from serving.state import ServiceState

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "deploy"
UNIT = EXAMPLES / "shelfmark-serve@.service"

# systemd, Kubernetes, Prometheus


def unit(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


def kubernetes() -> dict[str, dict]:
    """The objects of serve.yaml by their kind."""
    return {found["kind"]: found for found in yaml.safe_load_all((EXAMPLES / "serve.yaml").read_text())}


def pod() -> dict[str, Any]:
    return kubernetes()["Deployment"]["spec"]["template"]["spec"]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """The options of shelfmark-serve; raises where one is unknown."""
    return serve.make_context("shelfmark-serve", arguments).params


def test_systemd_takes_the_unit(tmp_path):
    program, *arguments = shlex.split(unit("ExecStart"))
    options = parsed([argument.replace("%i", "1") for argument in arguments])
    assert Path(program).name == "shelfmark-serve"
    assert options["uds"].startswith(f"/run/{unit('RuntimeDirectory').replace('%i', '1')}/")
    assert unit("ReadWritePaths") == options["workspace"]
    assert int(unit("TimeoutStopSec").removesuffix("s")) > options["drain"]
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze here")
    file = tmp_path / "shelfmark-serve@1.service"
    file.write_text(UNIT.read_text().replace(program, sys.executable).replace("=shelfmark\n", "=root\n"))
    verify = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if file.name in line] == []
    security = ["systemd-analyze", "security", "--offline=yes", "--threshold=25", str(file)]
    done = subprocess.run(security, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]  # an exposure of 2.5 of 10 at most


def test_systemd_and_compose_let_the_service_have_the_files_of_all_connections():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    limits = ConnectionLimits()
    for files in (int(unit("LimitNOFILE")), compose["serve"]["ulimits"]["nofile"]):
        assert within_files(limits, files, cores=256) == limits


def test_kubernetes_takes_the_service():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for found in kubernetes().values():
        kubernetes_validate.validate(found, "1.33", strict=True)
    (container,) = pod()["containers"]
    program, *arguments = container["args"]
    options = parsed(arguments)
    assert (program, options["host"]) == ("shelfmark-serve", "0.0.0.0")
    assert container["ports"] == [{"name": "http", "containerPort": options["port"]}]
    assert kubernetes()["Service"]["spec"]["selector"] == pod_labels()
    wait = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod()["terminationGracePeriodSeconds"] > wait + options["drain"]
    mounted = [volume["mountPath"] for volume in container["volumeMounts"]]
    assert container["securityContext"]["readOnlyRootFilesystem"] and "/tmp" in mounted


def pod_labels() -> dict[str, str]:
    return kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]


def test_every_probe_asks_what_the_service_answers():
    (container,) = pod()["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}


def test_the_alerts_name_figures_that_the_service_has():
    alerts = yaml.safe_load((EXAMPLES / "alerts.yml").read_text())["groups"][0]["rules"]
    text = " ".join(alert["expr"] for alert in alerts)
    metrics = Metrics(ServiceState())
    metrics.request("/v1/categorize", "POST", 200, 0.1)
    families = [family.name for family in text_string_to_metric_families(metrics.text().decode())]
    names = {name + end for name in families for end in ("", "_total", "_bucket", "_count")}
    named = set(re.findall(r"\b(?:shelfmark|process)_\w+", text))
    assert len(named) > 8
    assert named - names == set()
    assert len({alert["alert"] for alert in alerts}) == len(alerts)
    assert {alert["labels"]["severity"] for alert in alerts} == {"page", "ticket"}


def test_prometheus_asks_the_service_of_compose_and_reads_the_alerts():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    config = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
    ((target,),) = [found["targets"] for found in config["scrape_configs"][0]["static_configs"]]
    name, _, port = target.partition(":")
    assert parsed(compose[name]["command"][1:])["port"] == int(port)
    mounted = [volume.split(":")[1] for volume in compose["prometheus"]["volumes"]]
    assert [f"/etc/prometheus/{file}" for file in config["rule_files"]] == [mounted[1]]


ALERTS = """
rule_files: [alerts.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'shelfmark_requests_total{route="/v1/categorize", status="200"}', values: '0+90x30'}
      - {series: 'shelfmark_requests_total{route="/v1/categorize", status="429"}', values: '0+6x30'}
      - {series: 'shelfmark_requests_total{route="/v1/categorize", status="503"}', values: '0+9x30'}
      - {series: 'shelfmark_requests_total{route="/v1/corrections", status="500"}', values: '0x15 0+9x15'}
      - {series: 'shelfmark_refused_release{release="2026-W48", instance="a"}', values: '1x30'}
      - {series: 'shelfmark_refused_release{release="2026-W48", instance="b"}', values: '0x30'}
      - {series: 'up{job="shelfmark", instance="a"}', values: '1x9 0x20'}
    alert_rule_test:
      - {eval_time: 15m, alertname: ShelfmarkErrors}
      - eval_time: 29m
        alertname: ShelfmarkErrors
        exp_alerts:
          - exp_labels: {severity: page}
            exp_annotations: {summary: "more than 1 % of the requests fail, or take longer than their time"}
      - {eval_time: 10m, alertname: ShelfmarkFull}
      - eval_time: 29m
        alertname: ShelfmarkFull
        exp_alerts:
          - exp_labels: {severity: ticket}
            exp_annotations:
              summary: "more than 5 % of the requests find the queue full: one more service is needed"
      - {eval_time: 11m, alertname: ShelfmarkDown}
      - eval_time: 12m
        alertname: ShelfmarkDown
        exp_alerts:
          - exp_labels: {severity: page, job: shelfmark, instance: a}
            exp_annotations: {summary: a does not answer}
      - eval_time: 5m
        alertname: ShelfmarkRefusedRelease
        exp_alerts:
          - exp_labels: {severity: ticket, release: 2026-W48, instance: a}
            exp_annotations:
              summary: a cannot use release 2026-W48, the one before stays; its log says why
"""


def test_promtool_takes_the_configuration_and_the_alerts_fire_when_they_should(tmp_path):
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("no promtool here (Debian and Ubuntu: apt install prometheus)")
    for file in ("prometheus.yml", "alerts.yml"):
        shutil.copy(EXAMPLES / file, tmp_path)
    (tmp_path / "test.yml").write_text(ALERTS)
    for words in (["check", "config", "prometheus.yml"], ["test", "rules", "test.yml"]):
        done = subprocess.run([promtool, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# nginx


def nginx_or_skip() -> str:
    found = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not found:
        assert not os.environ.get("REQUIRE_NGINX"), "no nginx: apt install nginx-light"
        pytest.skip("no nginx here (Debian and Ubuntu: apt install nginx-light)")
    return found


class Small(BaseHTTPRequestHandler):
    """A service that notes what it gets, and says what it is made to say."""

    protocol_version = "HTTP/1.1"
    server: "SmallServer"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), len(body)))
        status = self.server.statuses.get(self.path, 200)
        answer = json.dumps({"from": self.server.name}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if status in (429, 503):
            self.send_header("Retry-After", "7")
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def address_string(self) -> str:
        return "nginx"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class SmallServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Small)
        path.chmod(0o666)  # as root, nginx' workers are nobody
        self.name = path.parent.name
        self.requests: list[tuple[str, dict[str, str], int]] = []
        self.statuses: dict[str, int] = {}
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Nginx:
    """nginx with the example, its names replaced by those of a folder; and two small services behind it."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder, self._program = folder, program
        self.log = folder / "error.log"
        text = (EXAMPLES / "nginx.conf").read_text()
        for name, here in {
            "/run/": f"{folder}/",
            "listen 443 ssl": f"listen unix:{folder}/tls.sock ssl",
            "/etc/ssl/shelfmark/fullchain.pem": f"{folder}/certificate.pem",
            "/etc/ssl/private/shelfmark.pem": f"{folder}/key.pem",
        }.items():
            assert name in text
            text = text.replace(name, here)
        temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in KINDS)
        user = "user root;" if os.getuid() == 0 else ""  # it reads what the tests make
        (folder / "nginx.conf").write_text(
            f"{user} pid {folder}/pid; error_log {self.log}; daemon off; worker_processes 1;\n"
            f"events {{}}\nhttp {{ access_log off; {temporary}\n{text} }}\n"
        )

    def command(self, *more: str) -> list[str]:
        return [self._program, "-p", str(self._folder), "-c", str(self._folder / "nginx.conf"), *more]

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a response."""
        connection = TlsConnection(self._folder / "tls.sock", self._folder / "certificate.pem")
        try:
            connection.request(method, path, body, headers, encode_chunked=False)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()


KINDS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
NAME = "shelfmark.example.com"


class TlsConnection(http.client.HTTPConnection):
    """HTTPS on a unix socket, with the certificate checked."""

    def __init__(self, path: Path, certificate: Path) -> None:
        super().__init__(NAME, timeout=60)
        self._path, self._context = path, ssl.create_default_context(cafile=certificate)

    def connect(self) -> None:
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(60)
        plain.connect(str(self._path))
        self.sock = self._context.wrap_socket(plain, server_hostname=NAME)


@pytest.fixture(scope="module")
def stopped_nginx(tmp_path_factory: pytest.TempPathFactory) -> Nginx:
    program = nginx_or_skip()
    folder = tmp_path_factory.mktemp("nginx")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}",
         "-keyout", folder / "key.pem", "-out", folder / "certificate.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    for number in (1, 2):
        (folder / f"shelfmark-{number}").mkdir()
    return Nginx(folder, program)


@pytest.fixture
def small(stopped_nginx: Nginx) -> Iterator[tuple[Nginx, SmallServer, SmallServer]]:
    """The example in nginx, and the two services behind it."""
    folder = stopped_nginx.log.parent
    with ExitStack() as stack:
        services = [SmallServer(folder / f"shelfmark-{number}" / "http.sock") for number in (1, 2)]
        for service in services:
            stack.callback((folder / service.name / "http.sock").unlink)
            stack.callback(service.server_close)
            stack.callback(service.shutdown)
        stack.enter_context(running(stopped_nginx))
        yield stopped_nginx, services[0], services[1]


class running:
    """nginx, from its first answer to its end."""

    def __init__(self, nginx: Nginx) -> None:
        self._nginx = nginx

    def __enter__(self) -> Nginx:
        (self._nginx.log.parent / "tls.sock").unlink(missing_ok=True)
        self._process = subprocess.Popen(self._nginx.command(), stderr=subprocess.DEVNULL)
        wait_for(lambda: self._process.poll() is not None or self._answers())
        assert self._process.poll() is None, self._nginx.log.read_text()
        return self._nginx

    def _answers(self) -> bool:
        try:
            return self._nginx.ask("GET", "/metrics")[0] == 404
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=30)


def wait_for(ready: Callable[[], bool], limit_s: float = 60) -> None:
    end = time.monotonic() + limit_s
    while not ready():
        assert time.monotonic() < end, "it has not become ready"
        time.sleep(0.05)


def test_nginx_takes_the_example(stopped_nginx):
    done = subprocess.run(stopped_nginx.command("-t"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.replace(str(stopped_nginx.log), "")


def test_nginx_passes_a_request_with_its_limits_of_time_to_one_of_two_services(small):
    nginx, one, two = small
    body = bytes(200_000)
    headers = {"X-Request-Timeout": "2.5", "Authorization": "Bearer secret"}
    status, _, answer = nginx.ask("POST", "/v1/categorize", body, **headers)
    assert (status, json.loads(answer)["from"]) in [(200, "shelfmark-1"), (200, "shelfmark-2")]
    ((path, received, length),) = one.requests + two.requests
    assert (path, length) == ("/v1/categorize", len(body))
    assert {name: received[name] for name in headers} == headers
    assert (received["Host"], received["X-Forwarded-Proto"]) == (NAME, "https")


@pytest.mark.parametrize("status", [429, 503])
def test_where_one_service_is_full_or_ends_nginx_asks_the_other(small, status):
    nginx, one, two = small
    one.statuses["/v1/categorize"] = status
    answers = [nginx.ask("POST", "/v1/categorize", b"photo") for _ in range(6)]
    assert [(code, json.loads(body)["from"]) for code, _, body in answers] == [(200, "shelfmark-2")] * 6
    assert one.requests, "the service that is full was not asked at all"
    two.statuses["/v1/categorize"] = status
    code, headers, _ = nginx.ask("POST", "/v1/categorize", b"photo")
    assert (code, headers["Retry-After"]) == (status, "7")


def test_where_one_service_is_gone_nginx_asks_the_other(small):
    nginx, one, two = small
    one.shutdown()
    one.server_close()
    codes = [nginx.ask("POST", path, b"photo")[0] for path in ("/v1/categorize", "/v1/corrections") * 3]
    assert codes == [200] * 6
    assert len(two.requests) == 6


def test_a_correction_that_was_received_is_sent_to_no_other_service(small):
    nginx, one, two = small
    one.statuses["/v1/corrections"] = two.statuses["/v1/corrections"] = 503
    assert nginx.ask("POST", "/v1/corrections", b"mug")[0] == 503
    assert len(one.requests) + len(two.requests) == 1


def test_more_than_64_mib_are_a_problem_before_they_are_read(small):
    nginx, one, two = small
    too_much = str((64 << 20) + 1)
    status, headers, answer = nginx.ask("POST", "/v1/categorize", None, **{"Content-Length": too_much})
    assert (status, headers["Content-Type"]) == (413, "application/problem+json")
    assert json.loads(answer)["detail"].count("; ") == 2
    assert one.requests + two.requests == []


def test_figures_and_states_are_not_for_the_outside(small):
    nginx, one, two = small
    assert [nginx.ask("GET", path)[0] for path in ("/metrics", "/readyz", "/healthz")] == [404, 404, 200]
    assert [path for path, _, _ in one.requests + two.requests] == ["/healthz"]


@pytest.mark.slow
def test_the_service_decides_behind_nginx(stopped_nginx, workspace, photo):
    folder = stopped_nginx.log.parent
    file = folder / "shelfmark-2" / "http.sock"  # nothing is behind the other socket
    call = [sys.executable, "-m", "serving", "--workspace", str(workspace), "--uds", str(file)]
    with (
        subprocess.Popen(call, cwd=ROOT, stderr=subprocess.PIPE, text=True) as service,
        running(stopped_nginx),
    ):
        try:
            wait_for(
                lambda: service.poll() is not None or stopped_nginx.ask("GET", "/v1/release")[0] == 200, 200
            )
            part = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
            body = part + photo(1) + b"\r\n--x--\r\n"
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            status, _, answer = stopped_nginx.ask("POST", "/v1/categorize", body, **kind)
            assert (status, json.loads(answer)["release"]) == (200, "first")
            status, headers, answer = stopped_nginx.ask("POST", "/v1/categorize", b"--x--\r\n", **kind)
            assert (status, headers["Content-Type"]) == (422, "application/problem+json")
        finally:
            service.terminate()
            _, log = service.communicate(timeout=60)
    assert service.returncode == 143, log
    assert not file.exists()


def test_an_unknown_option_is_found():
    with pytest.raises(click.UsageError):
        parsed(["--workspace", "W", "--no-such-option"])
