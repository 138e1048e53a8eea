"""One reader under Atheris: ``python -m faults.guided NUMBER FOLDER -libFuzzer=…``."""

import sys
from pathlib import Path


def main() -> None:
    """Fuzzes until libFuzzer's options say that it is enough."""
    # Only here: what is imported under Atheris is instrumented, and it isn't among
    # what the tests install.
    import atheris

    with atheris.instrument_imports(include=["tiger_jax"]):
        from faults.readers import READERS

    reader, folder = READERS[int(sys.argv[1])], Path(sys.argv[2])

    def read(content: bytes) -> None:
        if problem := reader.problem(folder, content):
            raise AssertionError(problem)

    atheris.Setup([sys.argv[0], *sys.argv[3:]], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
