"What a command of the command line would do, without doing it."

import importlib
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import typer

ROW = dict(key="0123456789ab", clean_accuracy=0.5, clean_accuracy_low=0.4, clean_accuracy_high=0.6, n_clean=100)


class CommandLine:
    """The commands poison, clean, measure, audit, filter and doctor, parsed as `parnb` does; what computes is replaced.

    A call returns the effects of a command: the run, how steps are computed, what is published and printed."""

    def __init__(self, *argv: str):
        # the options of registered cleaners are added where the command is the one that was typed
        with mock.patch.object(sys, "argv", ["parnb", *(argv or ("clean", "measure"))]):
            self.models = importlib.reload(importlib.import_module("parnb.cli.models"))
        app = typer.Typer()
        app.registered_commands += self.models.app.registered_commands
        for name in ("audit", "filter", "doctor"):
            app.registered_commands += importlib.import_module(f"parnb.cli.{name}").app.registered_commands
        self.group = typer.main.get_command(app)

    def options(self, command: str) -> list[str]:
        "The options of a command, as typed."
        named = [p for p in self.group.commands[command].params if p.param_type_name == "option"]
        return [p.opts[0] for p in named if p.opts[0] != "--help"]

    def flags(self, command: str) -> list[str]:
        "Those that take no value."
        return [p.opts[0] for p in self.group.commands[command].params if getattr(p, "is_flag", False)]

    def __call__(self, *argv) -> dict:
        effects, made = {}, Path("an-artifact")

        def model(run, compute):
            effects.update(run=run, compute=compute.model_dump())
            return made

        def calibrated(run, budget, smoke, compute, tell, suspected, margin):
            effects["calibrated"] = [budget, smoke, suspected, margin]
            return model(run, compute)

        def strongest(run, budget, compute, tell):
            effects["strongest"] = budget
            return model(run, compute)

        def measure(run, fresh=False, batch_size=256):
            effects.update(run=run, fresh=fresh, batch_size=batch_size)
            return ROW

        def filter_source(scale, encoder, detector, out, drop):
            content = Path(scale).read_text()
            effects.update(run=detector, encoder=encoder, content=content, out=str(out), drop=drop)

        def defender_of(scale, model, pretrained=None, count=256, option="--model"):
            content = Path(scale).read_text() if Path(scale).is_file() else scale
            return SimpleNamespace(seen=[content, str(model), str(pretrained), count], reference=None)

        def audit(defender, name, reference, only, parameters, checks):
            seen = dict(auditor=defender.seen, reference=defender.reference and defender.reference.seen)
            seen |= dict(only=only, parameters=parameters)
            effects.update(run=SimpleNamespace(model_dump=lambda: seen | dict(names=[name, reference])))
            return SimpleNamespace(findings={}, images=0)

        def flag_images(folder, defender, only, parameters, limit):
            effects.update(flagged=[str(folder), defender.seen, only, parameters, limit])
            return {}

        def rank_pairs(scale, use, defender, only, count, parameters):
            content = Path(scale).read_text() if Path(scale).is_file() else scale
            effects.update(ranked=[content, use, defender.seen, only, count, parameters])
            return {}

        def certify(scale, before, after, count, only, parameters, further, checks):
            contents = [
                Path(s).read_text() if Path(s).is_file() else s for s in (scale, further and further.scale) if s
            ]
            seen = dict(contents=contents, models=[before, after], count=count, only=only, parameters=parameters)
            seen |= dict(further=[further.use, further.rebound.model_dump()] if further else None)
            effects.update(run=SimpleNamespace(model_dump=lambda: seen))

        def examine(scale, encoder, amounts=False):
            seen = [Path(scale).read_text(), encoder]
            effects.update(run=SimpleNamespace(model_dump=lambda: seen))
            return []

        def publish(folder, out):
            effects["out"] = str(out)
            return out

        replaced = {
            "parnb.study.artifacts.cleaned_clip": model,
            "parnb.study.artifacts.poisoned_clip": model,
            "parnb.study.audit.as_json": lambda a: {},
            "parnb.study.audit.audit": audit,
            "parnb.study.audit.defender_of": defender_of,
            "parnb.study.audit.in_words": lambda a: ["words"],
            "parnb.study.canaries.calibrated_clip": calibrated,
            "parnb.study.strength.strongest_clip": strongest,
            "parnb.study.certificate.certificate_json": lambda c: {},
            "parnb.study.certificate.certificate_words": lambda c: ["words"],
            "parnb.study.certificate.certify": certify,
            "parnb.study.doctor.examine": examine,
            "parnb.study.doctor.preflight": lambda *a: [],
            "parnb.study.filter.filter_source": filter_source,
            "parnb.study.flags.flag_images": flag_images,
            "parnb.study.measure.measure": measure,
            "parnb.study.own.publish": publish,
            "parnb.study.suspicious.rank_pairs": rank_pairs,
        }
        printed = []
        for name in replaced:  # a module that is first imported under a replacement would keep it
            importlib.import_module(name.rpartition(".")[0])
        with ExitStack() as stack:
            for name, replacement in replaced.items():
                stack.enter_context(mock.patch(name, replacement))
            stack.enter_context(
                mock.patch.object(
                    self.models, "_write_poisoned", lambda run, folder: effects.update(shards=str(folder))
                )
            )
            stack.enter_context(mock.patch("builtins.print", lambda *a, **k: printed.append(a)))
            self.group(args=[str(a) for a in argv], standalone_mode=False)
        assert "run" in effects, f"{argv} computed nothing"
        return effects | dict(printed=repr(printed))

    def digest(self, *argv) -> str:
        "The effects of a command as text, to compare."
        effects = self(*argv)
        return json.dumps(effects | dict(run=effects["run"].model_dump()), sort_keys=True, default=str)
