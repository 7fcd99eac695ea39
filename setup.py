"""Metadata and dependencies are in pyproject.toml."""

from pathlib import Path
from shutil import copyfile

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """A wheel has configs/ as qkformer/configs, where --config finds them by their names."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in Path("configs").rglob("*.yml"):
                target = Path(self.build_lib, "qkformer", source)
                target.parent.mkdir(parents=True, exist_ok=True)
                copyfile(source, target)


setup(cmdclass={"build_py": WithConfigs})
