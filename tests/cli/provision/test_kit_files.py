"""The files of a kit: the templates are complete, and a value is text, never part of a template."""

import tomllib
from dataclasses import replace

import pytest
import yaml
from jinja2 import meta

from cli.provision import kit_files
from cli.provision.federation import Federation, SitePlan

NORTH, WEST = SitePlan("north", data_path="/data/rows.jsonl"), SitePlan("west", own_key=True)
CLINICS = Federation("clinics", ("fl.example.org", "192.0.2.7"), (NORTH, WEST))
HOSTILE = "<script>alert(1)</script> 'x' \"y\" {{ 7 * 7 }} {% raw %} \\"


def all_files(federation: Federation) -> dict[str, str]:
    """Every file of every kit, by machine and name."""
    files = {f"server/{name}": text for name, text in kit_files.server(federation).items()}
    for plan in federation.sites:
        files |= {f"{plan.name}/{name}": text for name, text in kit_files.site(federation, plan).items()}
    return files


def test_every_template_is_used_and_no_markup_of_it_is_left():
    files = all_files(CLINICS)
    assert len(files) == 4 + 2 * 6
    for name, text in files.items():
        assert not [mark for mark in ("{{", "}}", "{%", "%}") if mark in text], name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name
    used = {"unit.service.j2", "compose.gpu.yml"}
    used |= {f"{kit}_{name}.j2" for kit in ("server", "site") for name in ("readme.md", "compose.yml")}
    for name in list(used):
        source, _, _ = kit_files.TEMPLATES.loader.get_source(kit_files.TEMPLATES, name)
        used |= set(meta.find_referenced_templates(kit_files.TEMPLATES.parse(source)))
    assert used == set(kit_files.TEMPLATES.list_templates())


def test_the_compose_files_have_one_health_check_a_service():
    for kit, services in (("server", {"superlink"}), ("north", {"site", "node"})):
        page = yaml.safe_load(all_files(CLINICS)[f"{kit}/compose.yml"])
        assert page["services"].keys() == services
        for name, service in page["services"].items():
            assert service["healthcheck"]["test"][-1] == name
            assert service["image"] == "accord"
            assert service["cap_drop"] == ["ALL"]


def test_a_readme_says_who_makes_the_key():
    files = all_files(CLINICS)
    assert "`sites/west.pub`" in files["west/README.md"]
    assert "secret key" in files["north/README.md"]
    assert "secret key" not in files["west/README.md"]
    assert "9092 of fl.example.org or 192.0.2.7. " in files["server/README.md"]


def test_hostile_values_stay_text():
    """The folder and the image are the operator's: they appear as they are, and are never read as a template."""
    files = all_files(replace(CLINICS, folder=f"/srv/{HOSTILE}", image=HOSTILE))
    assert f"WorkingDirectory=/srv/{HOSTILE}/north\n" in files["north/accord-node.service"]
    assert f"  image: {HOSTILE}\n" in files["server/compose.yml"]
    assert f"docker run --rm -v accord-clinics-north_models:/models {HOSTILE} hf" in files["north/README.md"]


@pytest.mark.parametrize("text", [HOSTILE, "two\nlines", 'a"b', "\x1b[31m"])
def test_the_file_of_rows_is_quoted_in_site_toml(text):
    page = tomllib.loads(kit_files.site_toml(replace(NORTH, data_path=text), 0, 2))
    assert page["data-path"] == text
    assert page["name"] == "north"
