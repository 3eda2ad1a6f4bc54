"""What decides the tiny diffusion models: the phases of training, and ``RECIPES``, which made the shipped files."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from functools import partial

from ..opensora_models.mmdit.config import MMDiTConfig, default_axes
from ..opensora_models.releases.groups import Version
from ..opensora_models.stdit3.config import RELEASED_KERNEL_SIZE, STDiT3Config
from .flow_batches import EVERYWHERE_TURNING, FROM_MIDDLE_TURNING, HALTING, BatchConfig, buckets, causal_buckets
from .scenes import MOTIONS
from .text_encoder import TextEncoderConfig


@dataclass(frozen=True)
class Phase:
    """``steps`` updates whose rate rises shortly and falls as a cosine; it starts from the averaged weights of the
    phase before. ``rate_share`` is its highest rate as a share of the run's; ``mistaken_share`` likewise the weight of
    ``FlowConfig.mistaken`` where words decide. ``stays`` is the share of the phase before in the weights that this one
    ends with: a mean of two phases does what both can do."""

    steps: int
    batches: BatchConfig
    trains_text: bool = True
    rate_share: float = 1.0
    mistaken_share: float = 1.0
    stays: float = 0.0


# On black every colour is brighter than what is behind it, so their mean shows where a word moves things.
# Over all backgrounds that mean is gray, and a small network does not find motion among products of three words.
def on_black(version: Version) -> BatchConfig:
    """Plain text to video on black backgrounds."""
    return BatchConfig(
        buckets=buckets(version, pictures=0.15), given_share=0.0, frame_mask_share=0.0, fresh_share=0.0,
        backgrounds=("black",),
    )  # fmt: skip


# Turning shows in little but the corners: the last phases draw it more often.
TURNING = (*MOTIONS, "rotate", "rotate", "rotate")
TURNING_OR_STILL = (*MOTIONS, "rotate", "rotate", "still")

# Phases in which the text encoder stays as it is.
_settled = partial(Phase, trains_text=False, rate_share=0.5)
# Batches that ask what a clip shows of its own words and not of others.
_telling_apart = partial(
    BatchConfig, motions=TURNING_OR_STILL, rivals=True, scenes=EVERYWHERE_TURNING, bank_scenes=FROM_MIDDLE_TURNING
)
# Everything, and which shape it is.
_asking = partial(
    _telling_apart, given_share=0.3, frame_mask_share=0.05, noisy_shift=1.5, rest=True, given_rivals=True,
    recognised=True,
)  # fmt: skip


@dataclass(frozen=True)
class FlowConfig:
    """Everything that decides the result; the defaults made the shipped files of 1.3, ``RECIPES`` the others."""

    network: STDiT3Config | MMDiTConfig = STDiT3Config(
        version="1.3", depth=3, hidden_size=120, num_heads=5, in_channels=16, caption_channels=64,
        kernel_size=RELEASED_KERNEL_SIZE, use_spatial_rope=True,
    )  # fmt: skip
    text: TextEncoderConfig = TextEncoderConfig()
    phases: tuple[Phase, ...] = (
        Phase(800, on_black("1.3"), trains_text=False),
        _settled(
            4000,
            BatchConfig(
                buckets=buckets("1.3", pictures=0.25), given_share=0.3, motions=TURNING, scenes=EVERYWHERE_TURNING,
                bank_scenes=FROM_MIDDLE_TURNING,
            ),
            rate_share=0.7,
        ),
        _settled(
            6000,
            _telling_apart(
                buckets=buckets("1.3", pictures=0.3), given_share=0.25, frame_mask_share=0.05, noisy_shift=1.5,
                rest=True,
            ),
            mistaken_share=0.5,
        ),
        _settled(
            6500,
            _asking(buckets=buckets("1.3", pictures=0.2, long=(0.08, 0.0)), given_share=0.4),
            rate_share=0.4,
            mistaken_share=0.5,
        ),
        # Squares that turn were still circles: more of what turns, and more of its rivals.
        _settled(
            4500,
            _asking(buckets=buckets("1.3", pictures=0.15, long=(0.06, 0.0)), motions=TURNING),
            rate_share=0.4,
            mistaken_share=0.75,
            stays=0.5,
        ),
    )  # fmt: skip
    # Attention over time knows only distances between frames, so a network sees which frame is the first from the edges
    # of a clip alone. Large models find that out by themselves; this one is taught by a second loss of this weight.
    clock: float = 0.5
    # What tells a circle from a square, or turning from standing still, is a hundredth of a clip. A third loss of this
    # weight asks for the share of just that; phases that take rivals of their clips from the bank have it.
    mistaken: float = 4.0
    # Guidance multiplies what words change. Where clean frames decide all, that is error alone; a fourth loss of this
    # weight asks for none.
    worded: float = 8.0
    # A shape is a hundredth of a clip, and 2.0 takes it from words where a picture shows another. A fifth loss of this
    # weight asks the last block which shape frames or words tell; it is dropped after training.
    unrecognised: float = 0.3
    bank: int = 64  # clips for the same words, whose mean is what noise should become
    rate: float = 2e-3
    final_rate: float = 1e-4
    warm_up: int = 60
    muon_rate: float = 0.03  # of the blocks' matrices, which Muon trains; Adam trains the rest
    average: float = 0.995
    gradient_limit: float = 1.0
    seed: int = 13

    @property
    def version(self) -> str:
        """Id of the release."""
        return self.network.version if isinstance(self.network, STDiT3Config) else "2.0"

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def phase_at(self, step: int) -> tuple[int, int]:
        """(number of the phase, step within it)."""
        for number, phase in enumerate(self.phases):
            if step < phase.steps:
                return number, step
            step -= phase.steps
        raise ValueError(f"The run ends after {self.steps} steps.")


TEXT_ENCODER = FlowConfig(
    phases=(
        Phase(1200, on_black("1.3")),
        Phase(1000, BatchConfig(given_share=0.0, frame_mask_share=0.0)),
        _settled(8500, BatchConfig(given_share=0.3, frame_mask_share=0.08)),
        _settled(3000, BatchConfig(given_share=0.3, frame_mask_share=0.08, noisy_shift=1.5, motions=TURNING)),
        Phase(
            2500,
            _telling_apart(
                buckets=buckets("1.3", pictures=0.3), given_share=0.0, frame_mask_share=0.0, transformed_share=0.1
            ),
            rate_share=0.5,
        ),
    ),
)  # fmt: skip
"""Trains the text encoder that all three share, with a diffusion model of 1.3 that nobody keeps."""

# Four numbers for each patch of 8x8 pixels draw no outline of a shape that has shrunk to a third.
_less = partial(replace, shrinking=(0.25, 0.4))
_drawn = partial(BatchConfig, scenes=_less(EVERYWHERE_TURNING), bank_scenes=_less(FROM_MIDDLE_TURNING))
# Long clips are most often joins and extensions, between any places.
_joining = partial(
    _drawn, motions=TURNING_OR_STILL, rivals=True, rest=True, scenes=_less(HALTING), masks_like_given=0.9,
    decided_share=0.8, noisy_shift=1.5, masked_rivals=True, even_rivals=True,
)  # fmt: skip

# 2.0 has no frame masks.
_of_20 = partial(BatchConfig, frame_mask_share=0.0)
MISNAMED = 0.5
_told_20 = partial(_telling_apart, frame_mask_share=0.0, noisy_shift=1.5, rest=True)

TINY_20 = FlowConfig(
    network=MMDiTConfig(
        in_channels=64, vec_in_dim=16, context_in_dim=64, hidden_size=128, num_heads=4, depth=3, depth_single_blocks=3,
        axes_dim=default_axes(32), text_tokens=32,
    ),
    phases=(
        Phase(
            1200,
            _of_20(
                buckets=causal_buckets(pictures=0.15), given_share=0.0, fresh_share=0.0, backgrounds=("black",)
            ),
            trains_text=False,
        ),
        Phase(800, _of_20(buckets=causal_buckets(), given_share=0.0), trains_text=False),
        _settled(6000, _of_20(buckets=causal_buckets(), given_share=0.35)),
        _settled(
            2500,
            _of_20(
                buckets=causal_buckets(), given_share=0.35, noisy_shift=1.5, motions=TURNING, misnamed_share=MISNAMED
            ),
        ),
        _settled(6000, _told_20(buckets=causal_buckets(pictures=0.25), given_share=0.25, misnamed_share=MISNAMED)),
        _settled(
            3500,
            _told_20(
                buckets=causal_buckets(pictures=0.15, long=(0.06, 0.04)), given_share=0.5, given_rivals=True,
                misnamed_share=MISNAMED,
            ),
            rate_share=0.4,
            stays=0.25,
        ),
        # A wrong colour in the words is most of a clip's energy, a wrong shape a hundredth: that needs its own rival.
        _settled(
            2500,
            _told_20(
                buckets=causal_buckets(pictures=0.1, long=(0.06, 0.04)), given_share=0.65, given_rivals=True,
                misnamed_share=0.65, named_rivals=True,
            ),
            rate_share=0.4,
        ),
        _settled(
            3000,
            _told_20(
                buckets=causal_buckets(pictures=0.05, long=(0.06, 0.04)), given_share=0.85, misnamed_share=0.85,
                named_rivals=True,
            ),
        ),
        # Half of it long clips, most of them told a clip: with a tenth, ways turned back where the told frames end.
        _settled(
            4500,
            _told_20(
                buckets=causal_buckets(pictures=0.04, long=(0.3, 0.2)), given_share=0.9, misnamed_share=0.85,
                named_rivals=True, going_on_share=0.65,
            ),
        ),
        # Everything once more: words alone had lost shapes, and what was told became a square of any shape.
        _settled(
            3500,
            _told_20(
                buckets=causal_buckets(pictures=0.15, long=(0.15, 0.1)), given_share=0.6, misnamed_share=0.7,
                given_rivals=True, named_rivals=True, other_rivals=True, going_on_share=0.65,
            ),
            stays=0.25,
        ),
        # What a picture shows is asked for, and more often has no words beside it.
        _settled(
            12000,
            _told_20(
                buckets=causal_buckets(pictures=0.06, long=(0.12, 0.06)), given_share=0.75, misnamed_share=0.75,
                given_rivals=True, named_rivals=True, other_rivals=True, going_on_share=0.5, text_dropout=0.25,
                recognised=True,
            ),
        ),
    ),
)  # fmt: skip
"""Phases as 1.3's, without the one in which that trains its text encoder again, and five more."""

RECIPES: dict[str, FlowConfig] = {
    "2.0": TINY_20,
    "1.3": FlowConfig(),
    "1.2": FlowConfig(
        network=STDiT3Config(
            version="1.2", depth=3, hidden_size=120, num_heads=5, in_channels=4, caption_channels=64,
        ),
        phases=(
            Phase(800, on_black("1.2"), trains_text=False),
            _settled(
                4000,
                _drawn(
                    buckets=buckets("1.2", pictures=0.25), frame_mask_share=0.15, masks_like_given=0.7, motions=TURNING
                ),
                rate_share=0.7,
            ),
            _settled(
                6000,
                _drawn(
                    buckets=buckets("1.2", pictures=0.35), frame_mask_share=0.15, masks_like_given=0.8, noisy_shift=1.5,
                    motions=TURNING_OR_STILL, rivals=True, rest=True,
                ),
                mistaken_share=0.5,
            ),
            # Joins wait until words are learned: together with rivals they came fast, and shapes did not.
            _settled(
                3500,
                _joining(buckets=buckets("1.2", pictures=0.3, long=(0.3, 0.05)), frame_mask_share=0.3),
                mistaken_share=0.25,
            ),
            _settled(
                5000,
                _joining(buckets=buckets("1.2", pictures=0.35, long=(0.15, 0.03)), frame_mask_share=0.15),
                mistaken_share=0.5,
                stays=0.3,
            ),
            _settled(
                5500,
                _joining(buckets=buckets("1.2", pictures=0.25, long=(0.35, 0.05)), frame_mask_share=0.3),
                mistaken_share=0.75,
                stays=0.3,
            ),
            # Words again, at a lower rate and with few joins: circles had become squares, and all joins stay.
            _settled(
                8500,
                _joining(buckets=buckets("1.2", pictures=0.4, long=(0.2, 0.03)), frame_mask_share=0.15),
                rate_share=0.35,
                mistaken_share=0.5,
            ),
        ),
    ),
}  # fmt: skip


def add_recipe_options(parser: ArgumentParser) -> None:
    """What :func:`recipe_of` takes, on a command line."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--release", choices=sorted(RECIPES), default="1.3", help="which Open-Sora")
    which.add_argument(
        "--text-encoder", action="store_true", help="the text encoder of all instead, and what it is trained with"
    )


def recipe_of(options: Namespace) -> FlowConfig:
    """The recipe that a command line asks for."""
    return TEXT_ENCODER if options.text_encoder else RECIPES[options.release]
