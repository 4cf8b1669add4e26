"""Learning-rate schedules, as factors on the optimizer's rates.

Milestones are epochs, and the warm-up a share of ``train.max_iter``: a schedule keeps its shape when the batch size
or the length of the training changes.
"""

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler

from piip.engine.config import warmup_epochs, warmup_fraction
from piip.optim import PolynomialDecay

# Published PIIP detectors at batch 16: 87 960 iterations with steps at 58 640 and 80 630, linear warm-up over 500 from
# 0.001. The 2x one takes train.epochs=24, the 3x one 36.
lr_multiplier_1x = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[8, 11], num_updates=12),
    warmup_length=warmup_fraction(500),
    warmup_factor=0.001,
)
lr_multiplier_2x = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[16, 22], num_updates=24),
    warmup_length=warmup_fraction(500),
    warmup_factor=0.001,
)
lr_multiplier_3x = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[27, 33], num_updates=36),
    warmup_length=warmup_fraction(500),
    warmup_factor=0.001,
)

# ViTDet's 100 epochs of 1844 iterations at batch 64: 184 375 in all, steps at 163 889 and 177 546.
lr_multiplier_100ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[163889, 177546], num_updates=184375),
    warmup_length=warmup_fraction(250),
    warmup_factor=0.001,
)

# For short trainings from scratch.
lr_multiplier_cosine = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=warmup_fraction(50),
    warmup_factor=0.01,
)

# Published segmentors, of 40k, 80k or 160k iterations. LSNet: down to 1e-6, without warm-up. PIIP: a straight line
# after 1500 iterations from 1e-6 of the rate.
lr_multiplier_poly = L(PolynomialDecay)(power=0.9, end_value=0.005)
lr_multiplier_linear = L(WarmupParamScheduler)(
    scheduler=L(PolynomialDecay)(power=1.0, end_value=0.0),
    warmup_length=warmup_fraction(1500),
    warmup_factor=1e-6,
)

# Published classifiers: half a cosine over all epochs, the first five of which warm up linearly. LSNet: from 1e-6 to
# 4e-3 and down to 1e-5. PIIP: from 1e-6 to 3e-5 and down to 1e-5; its interactions have ten times that rate all along,
# those of the released training from ten times to the same 1e-5.
lr_multiplier_lsnet = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=1 / 400),
    warmup_length=warmup_epochs(5),
    warmup_factor=1 / 4000,
)
lr_multiplier_piip_classifier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=1 / 3),
    warmup_length=warmup_epochs(5),
    warmup_factor=1 / 30,
)
