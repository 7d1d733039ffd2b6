"""Train ACT on a dataset: `python scripts/train_act.py --config C --dataset_dir D --output_dir R --device cuda`."""

from bimact.cli import train_main

if __name__ == "__main__":
    train_main()
