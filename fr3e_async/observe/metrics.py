"""Every metric of a training batch: name, unit, panel, meaning, the code that makes it. Declared here and nowhere else.

``metrics.jsonl``, TensorBoard, trackers and the console use these names. The exporter (``prometheus``), the dashboard and the tables of
the documentation (``scripts/dashboard.py``) and the page's links to the code (``report``) are derived from the tables below.
A name that is not here is an error where it is recorded. How to add one: docs/extend.md.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from fr3e_async.algorithm.batching import AGE_BUCKETS
from fr3e_async.errors import RunFailed


class MetricError(RunFailed):
    """A metric is not declared here, or its value is not a finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """*Example*: ``Metric(name="reward/mean", unit="", panel="Overview: Reward", meaning="mean reward of …", made_by=("machine/tally.py:Tally.take",))``"""

    name: str  # group/what_unit; a plain count has no suffix
    unit: str  # "" for a pure number
    panel: str  # of the dashboard, "<section>: <title>"; "" if it is on none
    meaning: str
    made_by: tuple[str, ...]  # file:function, in the package; the first one gives the value its name
    series: str = ""  # the Prometheus series that has its numbers; "": one of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusMetric:
    """What is exported under one name. *Example*: ``name="actors_up", kind="gauge", unit="actors", labels=("role",)``."""

    name: str  # without a prefix
    kind: Literal["gauge", "counter", "histogram"]
    unit: str  # "" for a pure number
    labels: tuple[str, ...]  # besides ``run``
    panel: str  # as of a ``Metric``
    meaning: str
    buckets: tuple[float, ...] = ()  # upper bounds, of a histogram


# by <functions>, then their metrics: name | unit | panel | meaning. Instead of a panel:
#   "= <series>"          the series has the metric's numbers, it gets none of its own
#   "no panel: <reason>"  it is exported and not drawn
_TABLE = """
by machine/tally.py:Tally.take, machine/group.py:Group.retire, machine/group.py:Group.judge
  reward/accuracy                  | fraction | Overview: Accuracy                                      | correct answers among scored base rollouts: the policy's accuracy on fresh training problems
  reward/mean                      |          | Overview: Reward                                        | mean reward of all scored rollouts, branches included, in its declared range: the part that is correct, unless a user's function gives other numbers
by machine/tally.py:Tally.take, machine/group.py:Group.retire, machine/group.py:Group._response
  rollout/entropy_nats             | nats     | Learner: Entropy                                        | mean entropy of the sampling distribution over generated tokens; absent where the engines know none (engine.entropy=learner)
  rollout/entropy_error_nats       | nats     | Learner: Entropy                                        | how far that may be off: 0 with engine.entropy=engine
  rollout/length_tokens            | tokens   | Throughput: Length of a response                        | mean length of the whole response of a scored rollout: of a branch the trunk up to its anchor and the continuation
  rollout/truncated_fraction       | fraction | Throughput: Cut completions                             | part of the drawn rollouts that ran into sampling.max_response
  rollout/anchors                  | count    | Flow and staleness: Anchors of a group                  | mean number of anchors of a group, over the groups that ended since the last step
  rollout/anchors_certain_fraction | fraction | no panel: 1 unless engine.entropy=topk                  | anchors that are the same whatever the entropies are within what is known of them
by machine/tally.py:Tally.take, machine/tally.py:Tally.add, machine/group.py:Group.retire
  prompt/all_correct_fraction        | fraction | Throughput: Prompts all correct, all wrong                | prompts whose scored bases are all correct, of all prompts that ended since the last step and have a scored base, trained ones included
  prompt/all_wrong_fraction        | fraction | Throughput: Prompts all correct, all wrong                | the same whose scored bases are all wrong
by machine/tally.py:Tally.take, machine/group.py:Group._tokens, machine/group.py:_useful
  prompt/generated_tokens          | tokens   | Throughput: Tokens a prompt                             | generated for one prompt, mean over the groups that ended since the last step
  prompt/prefilled_tokens          | tokens   | Throughput: Tokens a prompt                             | context that engines computed for it
  prompt/reused_tokens             | tokens   | Throughput: Tokens a prompt                             | context that engines took from their prefix caches for it
  prompt/trained_tokens            | tokens   | no panel: tokens_trained_total has it                   | tokens of its rollouts that were trained, those with an advantage of 0 included
  prompt/useful_fraction           | fraction | Throughput: Useful tokens                               | part of the generated tokens that were trained with an advantage that is not 0
by machine/tally.py:Tally.take, machine/ledger.py:Ledger._settle, machine/ledger.py:Ledger._close
  groups/trained                   | groups   | = groups_settled_total                                  | prompt groups trained
  groups/all_correct                 | groups   | = groups_settled_total                                  | rejected: every scored rollout correct, branches included, nothing to learn; see prompt/all_correct_fraction
  groups/all_wrong                 | groups   | = groups_settled_total                                  | rejected: every scored rollout wrong, branches included, nothing to learn; see prompt/all_wrong_fraction
  groups/no_spread                 | groups   | = groups_settled_total                                  | rejected: rewards differ, but within no state that is trained; or all are alike, neither the lowest nor the highest
  groups/too_few                   | groups   | = groups_settled_total                                  | rejected: too few scored rollouts in every state
  groups/failed                    | groups   | = groups_settled_total                                  | their rollouts were lost flow.max_attempts times
by machine/tally.py:Tally.take, machine/group.py:Group._states
  states/kept                      | states   | = states_total                                          | states of the groups that ended since the last step that were not dropped: their rewards differ; with grpo and vineppo all that enough scored continuations are of
  states/all_correct                 | states   | = states_total                                          | dropped: every scored continuation correct
  states/all_wrong                 | states   | = states_total                                          | dropped: every scored continuation wrong
  states/no_spread                 | states   | = states_total                                          | dropped: all rewards alike, neither the lowest nor the highest (rewards of a user's function)
  states/too_few                   | states   | = states_total                                          | dropped: fewer than two scored continuations (vineppo: none)
  states/not_trained               | states   | = states_total                                          | left out by algorithm.train_bases=false, though their rewards differ
by machine/tally.py:Tally.take, machine/group.py:Group._states, algorithm/values.py:wilson
  states/interval_width            | fraction | Flow and staleness: How well states are known           | mean width of the 95 % Wilson intervals of V: how well the states are known
by machine/tally.py:Tally.take, machine/group.py:Group.retire, machine/group.py:Group.judge
  verify/correct                     | rollouts | = verdicts_total                                        | scored correct
  verify/wrong                     | rollouts | = verdicts_total                                        | scored wrong, a missing answer included
  verify/unknown                   | rollouts | = verdicts_total                                        | could not be judged: a limit was reached, or the answer or its reference is not readable
  verify/policy_fraction           | fraction | Flow and staleness: Correct answers, by policy            | correct answers that are correct by a policy of the judge rather than by a proof (docs/verifier.md); a rise is an event
  verify/scored_again              | rollouts | = scored_again_total                                    | scored more than once (verifiers.on_unknown=retry)
  verify/failed                  | rollouts | = verdicts_total                                        | never scored: lost flow.max_attempts times
by machine/tally.py:Tally.take, machine/group.py:Group._tokens
  tokens/generated                 | tokens   | = tokens_generated_total                                | generated for the groups that ended since the last step, rejected ones included
by control/heartbeat.py:Teller.step, machine/tally.py:Tally.take
  tokens/rate_per_s                | tokens/s | = tokens_generated_total                                | tokens/generated by time/step_s: of groups that ended since the last step, however long ago they began
by control/heartbeat.py:Teller.step, machine/machine.py:Machine
  queue/generators                 | tasks    | = tasks_queued                                          | tasks waiting for a generator
  queue/explorers                  | tasks    | = tasks_queued                                          | tasks waiting for an explorer
  queue/verifiers                  | tasks    | = tasks_queued                                          | tasks waiting for a verifier
  queue/ready_groups               | groups   | = groups_ready                                          | groups complete and waiting to be trained
by control/heartbeat.py:Teller.step
  time/step_s                      | s        | Throughput: Step time                                   | wall time since the last step
by control/learning.py:Learning._train
  time/train_s                     | s        | Throughput: Where a step's time goes                    | one batch in the learner, all optimiser steps
  time/export_s                    | s        | Throughput: Where a step's time goes                    | gathering the new weights and putting what changed into the object store
by control/progress.py:Progress.synced, control/publisher.py:Publisher.sync
  time/sync_s                      | s        | Throughput: Where a step's time goes                    | handing a version to all engines, until the last acknowledgement
by control/progress.py:Progress.synced, control/publisher.py:Sync.pause_s
  time/pause_s                     | s        | Engines: Weights: engines stand still                   | mean time that an engine stood still for it
by control/publisher.py:Sync.metrics, control/publisher.py:Publisher.sync
  time/pause_max_s                 | s        | Engines: Weights: engines stand still                   | longest time that an engine stood still for it
  time/copy_s                      | s        | Engines: Weights: hand-over                             | mean time for an engine to fetch, copy and check the weights, while it generates
  weights/sent_bytes               | bytes    | Engines: Weights: bytes of a version                    | weights of the version that were put into the object store
  weights/skipped_bytes            | bytes    | Engines: Weights: bytes of a version                    | weights in buckets that had not changed and were not sent again
  weights/copied_bytes             | bytes    | Engines: Weights: bytes of a version                    | weights that an engine copied, mean over the engines
  weights/verified_tensors         | tensors  | Engines: Weights: tensors proven, and looked at in part | of the version those of which every element was found in an engine as it was sent, the fewest of any engine
  weights/probed_tensors           | tensors  | Engines: Weights: tensors proven, and looked at in part | all others: packed ones, of which a rotating part is looked at, the most of any engine
by control/checkpointing.py:Checkpointing._save
  time/checkpoint_s                | s        | Throughput: Where a step's time goes                    | writing the last checkpoint: the learner stands still for it, engines and verifiers do not
  checkpoint/tree_bytes            | bytes    | Actors and checkpoints: Rollouts in a checkpoint        | rollouts of open groups in it
  checkpoint/open_groups           | groups   | no panel: groups_in_flight has it                       | groups that were open or with the learner when it was taken
by control/watchdog.py:Watchdog.utilisation, observe/intervals.py:idle_share
  idle/generators_fraction         | fraction | = idle_ratio                                            | part of the generators' time without a request, since the session began
  idle/explorers_fraction          | fraction | = idle_ratio                                            | part of the explorers' time without a request, since the session began
  idle/verifiers_fraction          | fraction | = idle_ratio                                            | part of the verifiers' time without an answer to judge, since the session began
  idle/learner_fraction            | fraction | = idle_ratio                                            | part of the learner's time without a batch, since the session began
by control/watchdog.py:Watchdog.utilisation, control/watchdog.py:Watchdog._overlap, observe/intervals.py:intersection
  overlap/fraction                 | fraction | Flow and staleness: Overlap                             | part of the learner's working time during which engines were generating, since the session began
by control/watchdog.py:Watchdog.utilisation, control/watchdog.py:Watchdog._measured
  cache/hit_fraction               | fraction | Engines: Prefix cache hits                              | part of the context tokens that the engines took from their prefix caches, since the session began
by control/watchdog.py:Watchdog.utilisation, control/watchdog.py:Watchdog.replaced
  actors/replaced                  | actors   | = worker_replacements_total                             | engines and verifiers replaced since the session began
by learner/metrics.py:loss_metrics, algorithm/losses.py:policy_loss, algorithm/losses.py:_token_losses
  train/loss                       |          | Learner: Loss                                           | mean token loss over all optimiser steps
by learner/metrics.py:step_metrics, learner/update.py:BatchUpdate._optimise
  train/grad_norm                  |          | Learner: Gradient norm                                  | global gradient norm before clipping, mean over optimiser steps
  train/grad_norm_max              |          | Learner: Gradient norm                                  | the largest of them
by learner/metrics.py:loss_metrics, learner/metrics.py:_means, algorithm/losses.py:_columns, algorithm/losses.py:clipped_surrogate
  train/clip_low_fraction          | fraction | Learner: Clipped tokens                                 | tokens with A < 0 that the lower clip bound stopped
  train/clip_high_fraction         | fraction | Learner: Clipped tokens                                 | tokens with A > 0 that the upper clip bound stopped
  train/dual_clip_fraction         | fraction | Learner: Clipped tokens                                 | tokens with A < 0 that dual clip stopped
  train/ratio_mean                 |          | Learner: Ratio                                          | mean of the ratio current / proximal policy
  train/ratio_max                  |          | Learner: Ratio                                          | the largest such ratio of any token
by learner/metrics.py:loss_metrics, learner/metrics.py:_means, algorithm/losses.py:_columns, algorithm/losses.py:_capped, algorithm/losses.py:kept_completions, learner/metrics.py:_ess_fraction
  train/importance_mean            |          | Learner: Importance weights                             | mean importance weight, as applied
  train/importance_capped_fraction | fraction | Learner: Importance weights                             | tokens whose weight exp(log proximal - log behaviour) was above loss.importance_cap or below loss.importance_floor
  train/sequence_masked_fraction   | fraction | Learner: Importance weights                             | tokens of completions that loss.sequence_mask left out
  train/ess_fraction               | fraction | Learner: Effective sample size                          | effective sample size of the importance weights, (sum w)^2 / (n sum w^2)
by learner/metrics.py:loss_metrics, learner/metrics.py:_means, algorithm/losses.py:_columns, algorithm/losses.py:k3
  train/mismatch_nats              | nats     | Learner: Sampler against trainer                        | mean |log proximal - log behaviour|: of tokens of age 0, so one set of weights, computed by trainer and sampler; absent without such tokens; 0 with loss.prox=behaviour, which compares nothing
  train/mismatch_kl_nats           | nats     | Learner: KL estimates                                   | mean k3 estimate of KL(behaviour, proximal) of tokens of age 0; absent without such tokens
  train/offpolicy_nats             | nats     | Learner: Sampler against trainer                        | mean |log proximal - log behaviour| of all tokens: staleness and mismatch together
  train/offpolicy_signed_nats      | nats     | Learner: Sampler against trainer                        | mean log proximal - log behaviour: minus the plain (k1) estimate of KL(behaviour, proximal)
  train/offpolicy_kl_nats          | nats     | Learner: KL estimates                                   | mean k3 estimate of KL(behaviour, proximal)
  train/kl_nats                    | nats     | Learner: KL estimates                                   | mean k3 estimate of KL(current, proximal)
  train/reference_kl_nats          | nats     | Learner: KL estimates                                   | mean k3 estimate of KL(current, reference); absent without a reference, or where it is 0
  train/entropy_nats               | nats     | Learner: Entropy                                        | mean entropy of the current policy at trained tokens
by learner/metrics.py:step_metrics, learner/metrics.py:token_ages
  train/tokens                     | tokens   | no panel: tokens_trained_total has it                   | trainable tokens of the batch
by learner/metrics.py:step_metrics, learner/update.py:BatchUpdate._schedule
  train/padding_fraction           | fraction | Learner: Packing                                        | token slots of the forward passes that were padding
  train/shared_fraction            | fraction | Learner: Packing                                        | tokens of the samples that the forward passes had not to compute, since prefixes are shared
by learner/metrics.py:step_metrics, learner/update.py:BatchUpdate.run
  train/lr                         |          | Learner: Learning rate                                  | learning rate of the last optimiser step
by learner/critic.py:_explained, learner/critic.py:_sums, learner/critic.py:Critic.credit
  critic/explained_variance        |          | Learner: Critic: explained variance                     | 1 - sum (r - V)^2 / sum (r - mean r)^2 over the batch's tokens, V of the critic before it is trained on them; absent where all rewards are alike
  critic/explained_variance_q1     |          | Learner: Critic: explained variance                     | the same over the first quarter of each response
  critic/explained_variance_q2     |          | Learner: Critic: explained variance                     | over the second
  critic/explained_variance_q3     |          | Learner: Critic: explained variance                     | over the third
  critic/explained_variance_q4     |          | Learner: Critic: explained variance                     | over the last
  critic/value_mean                |          | Learner: Critic: loss                                   | mean V of these tokens; beside reward/mean
by learner/critic.py:Critic.optimise, algorithm/losses.py:value_loss
  critic/loss                      |          | Learner: Critic: loss                                   | value loss of the last optimiser step
  critic/clip_fraction             | fraction | Learner: Critic: loss                                   | tokens of that step whose value critic.value_clip stopped
  critic/grad_norm                 |          | Learner: Gradient norm                                  | global gradient norm of the critic in that step, before clipping
by learner/metrics.py:step_metrics, learner/metrics.py:token_ages
  lag/versions_mean                | versions | Flow and staleness: Age in versions                     | mean age of the trained tokens
  lag/versions_max                 | versions | Flow and staleness: Age in versions                     | age of the oldest trained token; at most flow.max_staleness
"""

# Of the tokens of one age bucket, absent without such tokens; ``staleness/<bucket>_<name>``.
_BY_AGE = """
by learner/metrics.py:age_metrics, algorithm/batching.py:age_bucket
  tokens_fraction                  | fraction | Flow and staleness: Trained tokens by age               | share of the trained tokens
by learner/metrics.py:age_metrics, learner/metrics.py:_means, learner/metrics.py:_ess_fraction, algorithm/losses.py:_sum_by_age
  ess_fraction                     | fraction | Learner: Effective sample size                          | effective sample size of their importance weights
by learner/metrics.py:age_metrics, learner/metrics.py:_means, algorithm/losses.py:_columns, algorithm/losses.py:_sum_by_age
  importance_mean                  |          | no panel: by age; all ages together are shown           | mean importance weight, as applied
  offpolicy_nats                   | nats     | no panel: staleness_offpolicy_kl_nats tells the same    | mean |log proximal - log behaviour|
  offpolicy_kl_nats                | nats     | Learner: KL to the sampler, by age                      | mean k3 estimate of KL(behaviour, proximal)
  ratio_mean                       |          | no panel: by age; all ages together are shown           | mean of the ratio current / proximal policy
  ratio_max                        |          | Learner: Largest ratio, by age                          | the largest such ratio
  clip_low_fraction                | fraction | no panel: by age; all ages together are shown           | part with A < 0 that the lower clip bound stopped
  clip_high_fraction               | fraction | no panel: by age; all ages together are shown           | part with A > 0 that the upper clip bound stopped
"""


def _parse(table: str) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    made_by: tuple[str, ...] = ()
    for line in table.strip().splitlines():
        if line.startswith("by "):
            made_by = tuple(line.removeprefix("by ").split(", "))
            continue
        name, unit, panel, meaning = (cell.strip() for cell in line.split("|", 3))
        series = panel.removeprefix("= ") if panel.startswith("= ") else ""
        if series or panel.startswith("no panel: "):
            panel = ""
        found[name] = Metric(name=name, unit=unit, panel=panel, meaning=meaning, made_by=made_by, series=series)
    return found


def _by_age() -> dict[str, Metric]:
    metrics = {}
    for bucket in AGE_BUCKETS:
        ages = bucket.replace("_up", " or more").replace("_", " to ")
        for metric in _parse(_BY_AGE).values():
            name = f"staleness/{bucket}_{metric.name}"
            metrics[name] = replace(metric, name=name, meaning=f"tokens {ages} versions old: {metric.meaning}")
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
