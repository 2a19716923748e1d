"""`laennec` under FSDP on CPUs: accelerate shards only on accelerators, so the distributed type is replaced."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from laennec.cli.main import main
from laennec.training.trainer import LaennecTrainer

settle, step = PartialState.__init__, LaennecTrainer.training_step


def settle_as_on_gpus(self, *args, **kwargs):
    settle(self, *args, **kwargs)
    if PartialState._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def say_and_step(self, model, *args, **kwargs):
    if self.state.global_step == 0:
        kinds = sorted({type(parameter.data).__name__ for parameter in model.parameters()})
        units = sum("FSDP" in type(module).__name__ for module in model.modules())
        print(f"rank {self.args.process_index}: {self.accelerator.distributed_type.value} {kinds} {units}", flush=True)
    return step(self, model, *args, **kwargs)


if __name__ == "__main__":
    PartialState.__init__, LaennecTrainer.training_step = settle_as_on_gpus, say_and_step
    sys.exit(main())
