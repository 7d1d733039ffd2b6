"""ALOHA tasks in MuJoCo: environments, scripted demonstrators, recording.

Importing this package registers its environments; `gymnasium.make("bimact.sim:bimact/TransferCube-v0")` does both in
one call.
"""

import gymnasium

GYM_IDS = {"transfer_cube": "bimact/TransferCube-v0", "insertion": "bimact/Insertion-v0"}

for _task, _gym_id in GYM_IDS.items():
    gymnasium.register(id=_gym_id, entry_point="bimact.sim.environment:AlohaEnv", kwargs={"task": _task})
