"""Makes types of the published JSON Schema with datamodel-code-generator, and reads a record of
what was said with them.

    python3 datamodel.py SCHEMA.json RECORD.json FOLDER

The record must come out as it went in, and one with a wrong state must be refused.
"""

import json
import subprocess
import sys
from pathlib import Path

schema, record, folder = (Path(argument) for argument in sys.argv[1:])
made = folder / "made.py"
subprocess.run(
    [
        Path(sys.executable).with_name("datamodel-codegen"),
        *("--input", schema, "--input-file-type", "jsonschema"),
        *("--output", made, "--output-model-type", "pydantic_v2.BaseModel"),
    ],
    check=True,
    stderr=subprocess.DEVNULL,
)
sys.path.insert(0, str(folder))

import made as types  # noqa: E402  (it was made a moment ago)
from pydantic import ValidationError  # noqa: E402

said = json.loads(record.read_text())
read = types.SesameQmp.model_validate(said)
again = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
assert again == said, "the record came out otherwise than it went in"

said["commands"]["query-status"]["return"]["status"] = "flying"
try:
    types.SesameQmp.model_validate(said)
except ValidationError as error:
    assert "status" in str(error), error
else:
    sys.exit("a state that does not exist was taken")
print("done")
