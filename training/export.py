"""Turns a training checkpoint into the weights that ship.

    python training/export.py runs/demo src/secondlens/demo/data/demo.safetensors
    python training/export.py runs/twin src/secondlens/demo/data/demo-twin.safetensors

Float16; token embeddings only for the tokens that the world's texts use.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from train import Words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    saved = torch.load(args.run / "checkpoint.pt", weights_only=True)
    weights = {
        key.removeprefix("model."): tensor.half().contiguous()
        for key, tensor in saved["parts"].items()
        if key.startswith("model.") and "attn_mask" not in key
    }
    weights["token_ids"] = Words().ids.int()
    save_file(weights, args.out, metadata={"pictures": str(saved["seen"])})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB after {saved['seen']} pictures")


if __name__ == "__main__":
    main()
