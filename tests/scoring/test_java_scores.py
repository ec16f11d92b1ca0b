import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.errors import DependencyError
from pipeline.scoring.java_scores import java_scores

SAID, KNOWN = [["a", "dog", "runs"]], [[["a", "dog", "runs"], ["one", "dog"]]]
MODULES = ("pycocoevalcap", "pycocoevalcap.meteor", "pycocoevalcap.spice")


class Meteor:
    def compute_score(self, known: dict[int, list[str]], said: dict[int, list[str]]) -> tuple[float, list[float]]:
        assert (known, said) == ({0: ["a dog runs", "one dog"]}, {0: ["a dog runs"]})
        return 0.25, [0.25]


class Spice(Meteor):
    pass


class Offline:
    def compute_score(self, *_: object) -> tuple[float, list[float]]:
        raise OSError("no network")


def install(monkeypatch: pytest.MonkeyPatch, spice: type) -> None:
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.meteor.meteor", SimpleNamespace(Meteor=Meteor))
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", SimpleNamespace(Spice=spice))
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/java")


def test_scores_are_times_a_hundred(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Spice)
    assert java_scores(SAID, KNOWN) == {"meteor": 25, "spice": 25}


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.delitem(sys.modules, "pycocoevalcap.meteor.meteor", raising=False)
    with pytest.raises(DependencyError, match=r"pip install -c constraints\.txt -e .\.\[java-metrics\]"):
        java_scores(SAID, KNOWN)


def test_a_missing_java_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Spice)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(DependencyError, match="need Java 8 or later"):
        java_scores(SAID, KNOWN)


def test_models_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Offline)
    with pytest.raises(DependencyError, match=r"no network.*evaluate\.java_scores: false"):
        java_scores(SAID, KNOWN)
