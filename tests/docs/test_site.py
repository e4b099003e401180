"""The documentation site: every page is in its navigation, links serve both readers.

CI builds the site with warnings as errors; what needs no mkdocs is tried here.
"""

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("site_pages", ROOT / ".ci" / "pages.py")
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


def listed(entry):
    """Pages of a part of the navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in listed(part)]


def test_the_navigation_has_every_page_once():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = ROOT / "docs"
    there = [path.relative_to(docs).as_posix() for path in docs.rglob("*.md")]
    assert sorted(listed(settings["nav"])) == sorted([*there, *pages.OUTSIDE])
    assert settings["validation"]["nav"]["omitted_files"] == "warn"
    assert all((ROOT / source).is_file() for source in pages.OUTSIDE.values())


def test_ci_fails_on_a_warning():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = (line for line in script.splitlines() if "mkdocs build" in line)
    # --quiet hides warnings from --strict, too
    assert line.split("mkdocs ")[1] == "build --strict"


@pytest.mark.parametrize(
    ("page", "written", "expected"),
    [
        ("index.md", "[x](docs/howto/export.md#anchor)", "[x](howto/export.md#anchor)"),
        ("index.md", "![x](docs/images/predictions.png)", "![x](images/predictions.png)"),
        ("index.md", "[x](CONTRIBUTING.md)", "[x](contributing.md)"),
        ("howto/export.md", "[x](../../README.md#results)", "[x](../index.md#results)"),
        ("numbers.md", "[x](../README.md)", "[x](index.md)"),
        ("howto/export.md", "[x](../numbers.md)", "[x](../numbers.md)"),
        ("howto/export.md", "[x](predict.md), [y](#there)", "[x](predict.md), [y](#there)"),
        ("index.md", "[x](https://arxiv.org/abs/1)", "[x](https://arxiv.org/abs/1)"),
        ("index.md", "[`x`](docs/faults.md)", "[`x`](faults.md)"),
        # neither is a link
        ("index.md", "`a[0](docs/x.md)`", "`a[0](docs/x.md)`"),
        ("index.md", "```python\na[0](docs/x.md)\n```", "```python\na[0](docs/x.md)\n```"),
        # left as it is, so that the strict build fails
        ("numbers.md", "[x](../setup.py)", "[x](../setup.py)"),
    ],
)
def test_links_fit_the_site(page, written, expected):
    assert pages.links_for_site(written, page) == expected


def test_what_a_browser_would_load_from_elsewhere_is_found():
    html = (
        '<a href="https://arxiv.org">paper</a> <img src="images/x.png">\n'
        '<link rel="stylesheet" href="https://fonts.example/css">\n'
        '<script async src="//cdn.example/x.js"></script><img alt="" src=https://a.example/b.png>'
    )
    found = ["https://fonts.example/css", "//cdn.example/x.js", "https://a.example/b.png"]
    assert pages.loaded_from_elsewhere(html) == found


def test_the_job_for_kubernetes_holds_together():
    page = (ROOT / "docs" / "howto" / "kubernetes.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (script,) = container["args"]
    name = job["metadata"]["name"]
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    # the pods are found by the label that a job gives its pods, as <job>-<index>.<service>
    assert service["spec"]["selector"] == {"job-name": name}
    assert f"--master-addr {name}-0.{service['metadata']['name']} " in script
    assert pod["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completionMode"] == "Indexed"
    nodes = job["spec"]["parallelism"]
    assert nodes == job["spec"]["completions"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert f"--nnodes {nodes} --nproc-per-node {gpus} " in script
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert f"--out {mounts['shared']}/" in script
