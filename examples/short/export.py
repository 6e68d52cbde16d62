"""Turn a checkpoint folder with an fsrm.json in it into a bundle: python examples/short/export.py CHECKPOINT BUNDLE."""

import sys

from fsrm_lite import FastSlowRM
from fsrm_lite.export import export_checkpoint

checkpoint, bundle = sys.argv[1:]
manifest = export_checkpoint(checkpoint, bundle)
print("within tolerance:", manifest.card["parity"]["passed"])
rm = FastSlowRM.from_pretrained(bundle)
print(f"{rm.score('What is 2 + 3?', '5', judge='never').score:.2f}")
