"""``python -m qkformer.export FORMAT``, or ``qkformer export FORMAT``."""

from functools import partial

from qkformer.commands import dispatch
from qkformer.export.commands import nir, onnx, torch, trace
from qkformer.export.hf import hf

COMMANDS = {"onnx": onnx, "torch": torch, "nir": nir, "trace": trace, "hf": hf}


main = partial(dispatch, "python -m qkformer.export", COMMANDS)

if __name__ == "__main__":
    main()
