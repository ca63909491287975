"""Every metric that a run may report: name, unit, meaning. A name that is not here is an error where it is recorded.

Names are ``group/what_unit``; a plain count has no suffix. ``metrics.jsonl``, TensorBoard and the console use these names,
and the table in the documentation is made from them. Knows nothing of how the values come about.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.errors import RunFailed


class MetricError(RunFailed):
    """A metric is not declared here, or its value is not a finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    unit: str  # "" for a pure number
    meaning: str


_TABLE = """
reward/accuracy            | fraction   | right answers among judged base rollouts: the policy's accuracy on fresh training problems
reward/mean                |            | mean reward of all judged rollouts, branches included, in its declared range: the part that is right, unless a user's function gives other numbers
rollout/entropy_nats       | nats       | mean entropy of the sampling distribution over generated tokens; absent where the engines know none (engine.entropy=learner)
rollout/entropy_error_nats | nats       | how far that may be off: 0 with engine.entropy=engine
rollout/length_tokens      | tokens     | mean length of the whole response of a judged rollout: of a branch the trunk up to its anchor and the continuation
rollout/truncated_fraction | fraction   | part of the drawn rollouts that ran into sampling.max_response
rollout/anchors            | count      | mean number of anchors of a group, over the groups that ended since the last step
rollout/anchors_certain_fraction | fraction | anchors that are the same whatever the entropies are within what is known of them
prompt/all_right_fraction  | fraction   | prompts whose judged bases are all right, of all prompts that ended since the last step and have a judged base, trained ones included
prompt/all_wrong_fraction  | fraction   | the same whose judged bases are all wrong
prompt/generated_tokens    | tokens     | generated for one prompt, mean over the groups that ended since the last step
prompt/prefilled_tokens    | tokens     | context that engines computed for it
prompt/reused_tokens       | tokens     | context that engines took from their prefix caches for it
prompt/trained_tokens      | tokens     | tokens of its rollouts that were trained, those with an advantage of 0 included
prompt/useful_fraction     | fraction   | part of the generated tokens that were trained with an advantage that is not 0
groups/trained             | groups     | prompt groups trained
groups/all_right           | groups     | rejected: every judged rollout right, branches included, nothing to learn; see prompt/all_right_fraction
groups/all_wrong           | groups     | rejected: every judged rollout wrong, branches included, nothing to learn; see prompt/all_wrong_fraction
groups/no_spread           | groups     | rejected: rewards differ, but within no state that is trained; or all are alike, neither the lowest nor the highest
groups/too_few             | groups     | rejected: too few judged rollouts in every state
groups/failed              | groups     | given up: their rollouts were lost flow.max_attempts times
states/kept                | states     | states of the groups that ended since the last step that were not dropped: their rewards differ; with grpo and vineppo all that enough judged continuations are of
states/all_right           | states     | dropped: every judged continuation right
states/all_wrong           | states     | dropped: every judged continuation wrong
states/no_spread           | states     | dropped: all rewards alike, neither the lowest nor the highest (rewards of a user's function)
states/too_few             | states     | dropped: fewer than two judged continuations (vineppo: none)
states/not_trained         | states     | left out by algorithm.train_bases=false, though their rewards differ
states/interval_width      | fraction   | mean width of the 95 % Wilson intervals of V: how well the states are known
verify/right               | rollouts   | judged right
verify/wrong               | rollouts   | judged wrong, a missing answer included
verify/unknown             | rollouts   | could not be judged: a limit was reached, or the answer or gold is not readable
verify/policy_fraction     | fraction   | right answers that are right by a policy of the judge rather than by a proof (docs/verifier.md); a rise is an event
verify/judged_again        | rollouts   | judged more than once (verifiers.on_unknown=retry)
verify/given_up            | rollouts   | never judged, lost flow.max_attempts times
tokens/generated           | tokens     | generated for the groups that ended since the last step, rejected ones included
tokens/rate_per_s          | tokens/s   | tokens/generated by time/step_s: of groups that ended since the last step, however long ago they began
queue/generators           | tasks      | tasks waiting for a generator
queue/explorers            | tasks      | tasks waiting for an explorer
queue/verifiers            | tasks      | tasks waiting for a verifier
queue/ready_groups         | groups     | groups complete and waiting to be trained
time/step_s                | s          | wall time since the last step
time/train_s               | s          | one batch in the learner, all optimiser steps
time/export_s              | s          | gathering the new weights and putting what changed into the object store
time/sync_s                | s          | handing a version to all engines, until the last acknowledgement
time/pause_s               | s          | mean time that an engine stood still for it
time/pause_max_s           | s          | longest time that an engine stood still for it
time/copy_s                | s          | mean time for an engine to fetch, copy and check the weights, while it generates
weights/sent_bytes         | bytes      | weights of the version that were put into the object store
weights/skipped_bytes      | bytes      | weights in buckets that had not changed and were not sent again
weights/copied_bytes       | bytes      | weights that an engine copied, mean over the engines
weights/verified_tensors   | tensors    | of the version those of which every element was found in an engine as it was sent, the fewest of any engine
weights/probed_tensors     | tensors    | all others: packed ones, of which a rotating part is looked at, the most of any engine
time/checkpoint_s          | s          | writing the last checkpoint: the learner stands still for it, engines and verifiers do not
checkpoint/tree_bytes      | bytes      | rollouts of open groups in it
checkpoint/open_groups     | groups     | groups that were open or with the learner when it was taken
idle/generators_fraction   | fraction   | part of the generators' time without a request, since the session began
idle/explorers_fraction    | fraction   | part of the explorers' time without a request, since the session began
idle/verifiers_fraction    | fraction   | part of the verifiers' time without an answer to judge, since the session began
idle/learner_fraction      | fraction   | part of the learner's time without a batch, since the session began
overlap/fraction           | fraction   | part of the learner's working time during which engines were generating, since the session began
cache/hit_fraction         | fraction   | part of the context tokens that the engines took from their prefix caches, since the session began
actors/replaced            | actors     | engines and verifiers replaced since the session began
train/loss                 |            | mean token loss over all optimiser steps
train/grad_norm            |            | global gradient norm before clipping, mean over optimiser steps
train/grad_norm_max        |            | the largest of them
train/clip_low_fraction    | fraction   | tokens with A < 0 that the lower clip bound stopped
train/clip_high_fraction   | fraction   | tokens with A > 0 that the upper clip bound stopped
train/dual_clip_fraction   | fraction   | tokens with A < 0 that dual clip stopped
train/ratio_mean           |            | mean of the ratio current / proximal policy
train/ratio_max            |            | the largest such ratio of any token
train/importance_mean      |            | mean importance weight, as applied
train/importance_capped_fraction | fraction | tokens whose weight exp(log proximal - log behaviour) was above loss.importance_cap or below loss.importance_floor
train/sequence_masked_fraction | fraction | tokens of completions that loss.sequence_mask left out
train/ess_fraction         | fraction   | effective sample size of the importance weights, (sum w)^2 / (n sum w^2)
train/mismatch_nats        | nats       | mean |log proximal - log behaviour|: of tokens of age 0, so one set of weights, computed by trainer and sampler; absent without such tokens; 0 with loss.prox=behaviour, which compares nothing
train/mismatch_kl_nats     | nats       | mean k3 estimate of KL(behaviour, proximal) of tokens of age 0; absent without such tokens
train/offpolicy_nats       | nats       | mean |log proximal - log behaviour| of all tokens: staleness and mismatch together
train/offpolicy_signed_nats | nats      | mean log proximal - log behaviour: minus the plain (k1) estimate of KL(behaviour, proximal)
train/offpolicy_kl_nats    | nats       | mean k3 estimate of KL(behaviour, proximal)
train/kl_nats              | nats       | mean k3 estimate of KL(current, proximal)
train/entropy_nats         | nats       | mean entropy of the current policy at trained tokens
train/tokens               | tokens     | trainable tokens of the batch
train/padding_fraction     | fraction   | places of the forward passes that were padding
train/shared_fraction      | fraction   | tokens of the samples that the forward passes had not to compute, since prefixes are shared
train/lr                   |            | learning rate of the last optimiser step
lag/versions_mean          | versions   | mean age of the trained tokens
lag/versions_max           | versions   | age of the oldest trained token; at most flow.max_staleness
"""


# Of the tokens of one age bucket, absent without such tokens; ``staleness/<bucket>_<name>``.
_BY_AGE = """
tokens_fraction     | fraction | share of the trained tokens
ess_fraction        | fraction | effective sample size of their importance weights
importance_mean     |          | mean importance weight, as applied
offpolicy_nats      | nats     | mean |log proximal - log behaviour|
offpolicy_kl_nats   | nats     | mean k3 estimate of KL(behaviour, proximal)
ratio_mean          |          | mean of the ratio current / proximal policy
ratio_max           |          | the largest such ratio
clip_low_fraction   | fraction | part with A < 0 that the lower clip bound stopped
clip_high_fraction  | fraction | part with A > 0 that the upper clip bound stopped
"""


def _parse(table: str) -> dict[str, Metric]:
    rows = [[cell.strip() for cell in line.split("|", 2)] for line in table.strip().splitlines()]
    return {name: Metric(name=name, unit=unit, meaning=meaning) for name, unit, meaning in rows}


def _by_age() -> dict[str, Metric]:
    metrics = {}
    for bucket in AGE_BUCKETS:
        ages = bucket.replace("_up", " or more").replace("_", " to ")
        for metric in _parse(_BY_AGE).values():
            name = f"staleness/{bucket}_{metric.name}"
            metrics[name] = Metric(name=name, unit=metric.unit, meaning=f"tokens {ages} versions old: {metric.meaning}")
    return metrics


METRICS: dict[str, Metric] = _parse(_TABLE) | _by_age()


def checked(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics as plain floats. Raises ``MetricError`` for a name that is not declared or a value that is not finite."""
    for name, value in metrics.items():
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise MetricError(f"metric {name} is not declared in observe/metrics.py{hint}")
        if not math.isfinite(value):
            raise MetricError(f"metric {name} is {value}")
    return {name: float(value) for name, value in metrics.items()}
