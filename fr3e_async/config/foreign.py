"""Settings by the names that TRL, verl and OpenRLHF give them, for hints. docs/coming_from.md shows the same names side by side.

Names as of TRL's ``GRPOConfig`` (with transformers' ``TrainingArguments``), verl's ``ppo_trainer.yaml`` and OpenRLHF's
``train_ppo_ray.py``; of a dotted name the last part. Pure.
"""

# Our setting -> what others call it.
SAME: dict[str, str] = {
    "model.path": "model_name_or_path pretrain",
    "data.train": "dataset_name train_files prompt_data",
    "data.heldout": "eval_dataset val_files",
    "data.problem_field": "prompt_key input_key",
    "data.answer_field": "label_key",
    "data.template": "input_template",
    "data.chat": "apply_chat_template",
    "data.template_args": "chat_template_kwargs apply_chat_template_kwargs",
    "data.max_prompt": "max_prompt_length prompt_max_len",
    "data.on_long_prompt": "filter_overlong_prompts",
    "reward": "reward_funcs custom_reward_function remote_rm_url",
    "sampling.max_response": "max_completion_length max_response_length generate_max_len",
    "algorithm.strategy": "adv_estimator advantage_estimator",
    "algorithm.bases": "num_generations n n_samples_per_prompt",
    "algorithm.std_normalise": "scale_rewards norm_adv_by_std_in_grpo no_advantage_std_norm",
    "flow.groups_per_step": "generation_batch_size train_batch_size rollout_batch_size batch_size",
    "flow.max_staleness": "async_train async_queue_size",
    "loss.clip_low": "epsilon clip_ratio clip_ratio_low eps_clip eps_clip_low_high",
    "loss.clip_high": "epsilon_high clip_ratio clip_ratio_high eps_clip eps_clip_low_high",
    "loss.dual_clip": "delta clip_ratio_c",
    "loss.entropy_coef": "entropy_coeff entropy_loss_coef",
    "loss.reference_coef": "beta kl_loss_coef init_kl_coef use_kl_loss",
    "loss.importance": "vllm_importance_sampling_correction enable_vllm_is_correction",
    "loss.importance_cap": "vllm_importance_sampling_cap vllm_is_truncated_threshold",
    "learner.lr": "learning_rate actor_learning_rate",
    "learner.warmup_steps": "lr_warmup_steps",
    "learner.lr_schedule": "lr_scheduler_type lr_scheduler warmup_style",
    "learner.lr_min_ratio": "min_lr_ratio",
    "learner.betas": "adam_beta1 adam_beta2 adam_betas",
    "learner.weight_decay": "l2",
    "learner.grad_clip": "max_grad_norm max_norm",
    "learner.minibatches": "steps_per_generation ppo_mini_batch_size train_batch_size",
    "learner.epochs": "num_iterations ppo_epochs max_epochs",
    "learner.micro_batch_tokens": "per_device_train_batch_size gradient_accumulation_steps ppo_micro_batch_size_per_gpu "
    "ppo_max_token_len_per_gpu micro_train_batch_size train_max_tokens_per_gpu",
    "learner.dtype": "bf16",
    "learner.attention": "attn_implementation",
    "learner.activation_checkpointing": "gradient_checkpointing enable_gradient_checkpointing",
    "learner.ds_config": "deepspeed optimizer_offload param_offload adam_offload",
    "learner.ranks": "num_processes n_gpus_per_node actor_num_gpus_per_node",
    "generators.count": "vllm_num_engines",
    "generators.gpus": "vllm_tensor_parallel_size tensor_model_parallel_size",
    "engine.gpu_memory_utilization": "vllm_gpu_memory_utilization",
    "engine.eager": "enforce_eager",
    "engine.max_running": "max_num_seqs",
    "engine.prefix_caching": "enable_prefix_caching",
    "engine.options": "engine_kwargs",
    "run.steps": "max_steps num_train_epochs total_training_steps total_epochs num_episodes",
    "run.dir": "output_dir default_local_dir ckpt_path save_path",
    "run.name": "run_name experiment_name wandb_run_name",
    "run.checkpoint_every": "save_steps save_freq",
    "run.keep_checkpoints": "save_total_limit max_actor_ckpt_to_keep max_ckpt_num",
    "resume": "resume_from_checkpoint resume_mode load_checkpoint",
    "evaluation.every": "eval_steps test_freq",
    "evaluation.before": "val_before_train",
    "evaluation.samples": "num_generations_eval eval_n_samples_per_prompt",
    "evaluation.temperature": "eval_temperature",
    "observe.wandb": "report_to logger use_wandb",
    "observe.project": "project_name wandb_project",
    "observe.tensorboard": "use_tensorboard",
}  # fmt: skip
# Settings that do not exist here, and what to use instead.
ABSENT: dict[str, str] = {
    "all weights are trained, there is no LoRA": "lora_rank lora_alpha use_peft",
    "there is no critic: values are means over rollouts": "gamma lam lambd critic_learning_rate",
    "the warm-up is learner.warmup_steps, in optimiser steps": "warmup_ratio lr_warmup_ratio",
    "engines and learner never share a GPU": "vllm_mode colocate_all_models vllm_enable_sleep hybrid_engine free_cache_engine",
}  # fmt: skip


def ours(word: str) -> list[str]:
    """Our settings for another library's name, in the order of ``SAME``; none if it is not known."""
    return [path for path, names in SAME.items() if word in names.split()]


def instead(word: str) -> str:
    """Return why there is no such setting, or an empty text."""
    return next((why for why, names in ABSENT.items() if word in names.split()), "")
