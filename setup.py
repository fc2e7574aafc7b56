"""Packaging: every fact is read from settings.ini, so that it is written once.

Besides the modules, the wheel holds what a checkout has beside them: weights, released results and run notebooks, in
parnb/shipped. Notebooks are there without outputs, which `parnb run` makes and the documentation shows.
"""

import json
import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ["data/pretrained/**/*", "data/results/**/*", "nbs/*.ipynb"]
SHIPPED += [f"nbs/{folder}/*.ipynb" for folder in ("figures", "tables", "tutorials")]
LEFT_OUT = "data/pretrained/pretrained-"  # clean models that only the population of detectors needs, in a checkout


def shipped_files() -> list[Path]:
    "Files outside the package that the wheel holds, relative to the root; without hidden ones such as locks."
    found = (p.relative_to(ROOT) for pattern in SHIPPED for p in ROOT.glob(pattern) if p.is_file())
    kept = (p for p in found if not p.as_posix().startswith(LEFT_OUT))
    return sorted(p for p in kept if not any(part.startswith(".") for part in p.parts))


def without_outputs(text: str) -> str:
    "A notebook as it is before it runs."
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


class BuildWithData(build_py):
    "Copy the shipped files into the wheel. An editable installation reads them from the checkout."

    def run(self):
        if not self.editable_mode:  # modules of an earlier build must not get into this wheel
            shutil.rmtree(Path(self.build_lib) / "parnb", ignore_errors=True)
        super().run()
        for source, target in self._copies():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".ipynb":
                target.write_text(without_outputs(source.read_text(encoding="utf-8")), encoding="utf-8")
            else:
                shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for _, target in self._copies()]

    def _copies(self):
        if self.editable_mode:
            return []
        return [(ROOT / f, Path(self.build_lib) / "parnb" / "shipped" / f) for f in shipped_files()]


config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setuptools.setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"],
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    license_files=["LICENSE", "LICENSES-art.md"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changelog": cfg["git_url"] + "/blob/main/CHANGELOG.md",
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Framework :: Jupyter",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=setuptools.find_packages(include=["parnb", "parnb.*"]),
    package_data={"parnb": ["presets/**/*"]},
    cmdclass={"build_py": BuildWithData},
    python_requires=">=" + cfg["min_python"],
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={"dev": shlex.split(cfg["dev_requirements"])},
    entry_points={"console_scripts": shlex.split(cfg["console_scripts"])},
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    zip_safe=False,
)
