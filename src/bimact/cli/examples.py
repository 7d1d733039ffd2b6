"""The examples at the end of each command's `--help`."""

EXAMPLES = {
    "demo": """
bimact demo                                     # hand over a cube
bimact demo --task insertion --seed 1           # insert a peg, with another training seed
bimact demo --quick                             # test the pipeline in under two minutes
""",
    "record": """
bimact record --task transfer_cube --episodes 50 --output_dir data/cube
bimact record --task insertion --output_dir data/peg --cameras top,left_wrist,right_wrist --noise 0.01
""",
    "check": """
bimact check data/cups
bimact check data/cups --no_images --fail_on error --json > findings.json
bimact check lerobot/aloha_sim_transfer_cube_human --episodes 0:10
""",
    "view": """
bimact view data/cups
bimact view data/cups --episode 3 --export cups.html
bimact view data/cups --augment augmented.png
""",
    "edit": """
bimact edit data/cups data/cups-clean --drop_episodes 3,7:9 --trim_idle
bimact edit data/cups data/cups-front --rename cam_high=front --drop_features cam_low
bimact edit data/cups data/all-cups --merge data/more-cups data/other-cups
bimact edit data/cups data/cups-train --episodes 0:40     # and the others: --episodes 40:
""",
    "convert": """
bimact convert data/cups data/cups-lerobot --to lerobot
bimact convert data/cups data/cups-small --to zarr --episodes 0:10 --cameras top
""",
    "estimate": """
bimact estimate --dataset_dir data/cups                                # the paper's policy on this device
bimact estimate --config demo --dataset_dir data/cube --batch_sizes 16,64 --json
""",
    "train": """
bimact train --dataset_dir data/cups --output_dir runs/cups            # the paper's policy, on a GPU
bimact train --config demo --dataset_dir data/cube --output_dir runs/cube --num_steps 1500
bimact train --dataset_dir data/cups --output_dir runs/cups --lr 5e-6 --encoder.freeze=false
bimact train --resume_from runs/cups                                   # after an interruption
""",
    "sweep": """
bimact sweep configs/sweep.yaml --dataset_dir data/cups --output_dir sweeps/cups --trials 20
""",
    "evaluate": """
bimact evaluate --run runs/cups                                        # error on held-out demonstrations
bimact evaluate --run runs/cups --saliency 6                           # which parts of the images matter
bimact evaluate --run runs/cube --task transfer_cube --rollouts 100 --video 5
bimact evaluate --run runs/cube --task transfer_cube --perturb camera_shift=0.02,delay=2
bimact evaluate --run runs/cube --task transfer_cube --rollouts 100 --suite robustness
bimact evaluate --run runs/cube --json | jq .offline.mae
""",
    "compare": """
bimact compare runs/a runs/b --task transfer_cube --rollouts 200       # the same scenes for both
bimact compare runs/a runs/b --task transfer_cube --sequential         # stops as soon as one is better
bimact compare runs/a runs/a --checkpoint best,last --task insertion
bimact compare runs/a runs/b --protocol trials.json --trials 20        # blind trials on a robot
""",
    "proof": """
bimact proof --dry_run                                                 # what it will cost here
bimact proof                                                           # hours; the same command resumes
bimact proof --tasks insertion --seeds 0,1,2 --rollouts 200
""",
    "report": """
bimact report --run runs/cube
""",
    "serve": """
bimact serve --run runs/cube
BIMACT_API_KEY=secret bimact serve --run runs/cube --host 0.0.0.0 --certfile cert.pem --keyfile key.pem
bimact serve --model exported/cube                                     # without PyTorch
""",
    "sim-robot": """
bimact sim-robot --task transfer_cube --rollouts 5 --execution async   # of the server on this machine
bimact sim-robot --task transfer_cube --run runs/cube --record data/cube-robot
""",
    "export": """
bimact export --run runs/cube --to onnx --output exported/cube
bimact export --run runs/cube --to lerobot_plugin --output exported/cube-lerobot
""",
    "latency": """
bimact latency --run runs/cube
""",
    "convert-checkpoint": """
bimact convert-checkpoint path/to/pretrained_model runs/theirs         # of LeRobot
bimact convert-checkpoint runs/cups exported/cups --to lerobot
""",
    "push": """
bimact push runs/cube alice/cube-act --license apache-2.0
bimact push runs/cube alice/cube-act --dry_run                         # print what would be uploaded
""",
    "push-dataset": """
bimact push-dataset data/cube alice/cube --license cc-by-4.0
""",
    "cache": """
bimact cache
bimact cache --clear data/cups
""",
    "doctor": """
bimact doctor
bimact doctor --json > doctor.json                                     # for a bug report
""",
    "guide-files": """
bimact guide-files act && cd act && python scripts/train_act.py --help
""",
    "completion": """
bimact completion bash > ~/.local/share/bash-completion/completions/bimact
""",
}
