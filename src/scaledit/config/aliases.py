"""Names that other programs use for the keys of a config, for messages about unknown keys.

train.lr=1e-4     unknown key 'train.lr'; did you mean 'optimizer.learning_rate'?
steps=3           'steps=3' names no section; did you mean 'train.steps=3' or 'sample.sampler.steps=3'?
epochs=10         ...; scaledit counts steps, not epochs: ...

These names are never accepted as keys. The tests check that each alias leads to a key that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scaledit.errors import closest, listed

SCALES = tuple(f"{section}.guidance.classifier_free.scale" for section in ("sample", "evaluate"))
ALIASES: Mapping[str, tuple[str, ...]] = {
    alias: keys
    for aliases, keys in (
        ("lr learning_rate base_lr max_lr", ("optimizer.learning_rate",)),
        ("lr_scheduler lr_schedule scheduler", ("optimizer.decay",)),
        ("warmup lr_warmup num_warmup_steps", ("optimizer.warmup_steps",)),
        ("wd weight_decay", ("optimizer.algorithm.weight_decay",)),
        ("beta adam_betas", ("optimizer.algorithm.betas",)),
        ("grad_clip clip_grad clip_grad_norm gradient_clipping max_grad_norm", ("optimizer.clip",)),
        ("optim optimizer", ("optimizer.algorithm",)),
        ("bs batch batchsize global_batch_size train_batch_size", ("train.batch_size",)),
        ("grad_accum accumulation gradient_accumulation_steps", ("train.accumulate",)),
        ("steps", ("train.steps", "sample.sampler.steps")),
        ("max_steps total_steps train_steps iterations iters", ("train.steps",)),
        ("num_steps", ("sample.sampler.steps", "train.steps")),
        ("sampling_steps num_sampling_steps num_inference_steps nfe", ("sample.sampler.steps",)),
        ("ema ema_decay", ("ema.decay",)),
        ("cfg cfg_scale guidance_scale", SCALES),
        ("num_samples", ("evaluate.num", "sample.per_class")),
        ("patch p", ("model.patch_size",)),
        ("width hidden_dim dim embed_dim d_model", ("model.hidden_size",)),
        ("layers num_layers n_layers blocks num_blocks", ("model.depth", "model.layers")),
        ("heads n_heads num_attention_heads", ("model.num_heads",)),
        ("classes n_classes", ("model.num_classes",)),
        ("class_dropout_prob label_dropout cfg_dropout", ("model.class_dropout",)),
        ("channels", ("model.in_channels", "model.channels")),
        ("norm_layer norm_type rmsnorm use_rmsnorm", ("model.norm",)),
        ("swiglu use_swiglu ffn ffn_type act_layer hidden_act", ("model.mlp",)),
        ("qknorm use_qk_norm qk_layernorm qk_rmsnorm", ("model.qk_norm",)),
        ("num_registers n_registers num_register_tokens register_tokens", ("model.registers",)),
        ("time_embed timestep_embedder timestep_embedding", ("model.time_embedding",)),
        ("embedder patch_embedding patch_embedder", ("model.patch_embed",)),
        ("image_size resolution size", ("data.image_size", "model.image_size")),
        ("vae ae autoencoder", ("autoencoder.path",)),
        ("num_workers workers", ("data.workers",)),
        ("dataset", ("data.name", "data.path")),
        ("data_path data_dir data_root train_dir", ("data.path",)),
        ("random_flip hflip horizontal_flip", ("data.flip",)),
        ("noise_schedule beta_schedule", ("diffusion.schedule",)),
        ("loss loss_type", ("diffusion.objective", "loss.gradient_weight")),
        ("snr_gamma min_snr_gamma", ("diffusion.objective.gamma",)),
        ("repa proj_coeff repa_coeff", ("diffusion.terms",)),
        ("time_shift flow_shift", ("diffusion.times.shift", "sample.sampler.times.shift")),
        ("prediction_type pred parameterization", ("diffusion.prediction",)),
        ("gradient_checkpointing activation_checkpointing grad_checkpoint", ("engine.recompute",)),
        ("fsdp ddp strategy", ("engine.parallel",)),
        ("torch_compile", ("engine.compile",)),
        ("save_every ckpt_every checkpoint_every save_steps", ("checkpoint.every",)),
        ("sample_every", ("sample.every",)),
        ("eval_every eval_steps", ("evaluate.every",)),
        ("log_steps logging_steps", ("train.log_every",)),
        ("wandb_project", ("log.wandb",)),
        ("pretrained pretrained_model init_from base_model finetune finetune_from", ("train.init",)),
        ("frozen freeze_layers", ("train.freeze",)),
        ("lora_rank", ("lora.rank",)),
        ("lora_alpha", ("lora.alpha",)),
        ("target_modules lora_targets", ("lora.targets",)),
        ("modules_to_save", ("lora.also",)),
    )
    for alias in aliases.split()
}
"""{name: the keys that may be meant, the likeliest first}."""

EXPLAINED: Mapping[str, str] = {
    alias: text
    for aliases, text in (
        (
            "epochs num_epochs max_epochs epoch",
            "scaledit counts steps, not epochs: set train.steps; an epoch of N images is "
            "ceil(N / train.batch_size) steps",
        ),
        (
            "amp fp16 bf16 mixed_precision dtype",
            "mixed precision is the key train.precision=bf16, and full precision train.precision=fp32",
        ),
        (
            "dropout",
            "the network has no dropout, and model.class_dropout is the fraction of labels that are dropped "
            "for guidance",
        ),
        ("out out_dir output_dir outdir save_dir log_dir", "the run folder is the option --out FOLDER"),
        (
            "resume resume_from ckpt checkpoint_path",
            "a run is resumed by its folder, in place of a recipe: scaledit train RUN_FOLDER",
        ),
        ("device", "the device is the option --device"),
        ("gpus num_gpus n_gpus nproc devices world_size num_processes", "use the option --nproc N"),
    )
    for alias in aliases.split()
}
"""{name: what there is instead of a key}."""
MOST = 4
"""Suggestions in one message."""
LIKE, MUCH_LIKE = 0.6, 0.75
"""Similarity of two names, in the same section and in another one."""


def suggestions(keys: Sequence[str], name: str, section: str = "") -> list[str]:
    """The keys that a user may have meant by the unknown key `section`.`name`, the likeliest first.

    keys: all keys of the config, as 'section.key' and 'section.key.field'. section: '' if none was named. An
    alias comes before a key of that name in another section, and this before a key with a similar name. Of
    several, those in `section` itself are preferred.
    """
    word = name.lower().replace("-", "_")
    if meant := _meant(keys, word):
        return ([key for key in meant if key.startswith(f"{section}.")] or meant)[:MOST]
    inside = [key.removeprefix(f"{section}.") for key in keys if key.startswith(f"{section}.")]
    if near := closest(word, inside, LIKE):
        return [f"{section}.{near}"]
    near = closest(word, [key.rpartition(".")[2] for key in keys], MUCH_LIKE)
    return _meant(keys, near)[:MOST]


def _meant(keys: Sequence[str], word: str) -> list[str]:
    """The keys that a name stands for: those of the alias, else those that end with it."""
    known = [key for key in ALIASES.get(word, ()) if _exists(key, keys)]
    return known or [key for key in keys if key.rpartition(".")[2] == word]


def _exists(key: str, keys: Iterable[str]) -> bool:
    """Whether `key`, or the part that it is a field of, is among `keys`."""
    return key in keys or (key.count(".") > 2 and ".".join(key.split(".")[:2]) in keys)


def explanation(name: str) -> str:
    """What a user who wrote this key should do instead, if it is not to set another one; '' if unknown."""
    return EXPLAINED.get(name.lower().replace("-", "_"), "")


def hint(keys: Sequence[str], name: str, section: str = "", value: str = "") -> str:
    """The end of a message about an unknown key, from its semicolon on; '' if nothing comes close. value: is
    appended to each suggestion, such as '=3'."""
    if text := explanation(name):
        return f"; {text}"
    words = [repr(f"{key}{value}") for key in suggestions(keys, name, section)]
    return f"; did you mean {listed(words, 'or')}?" if words else ""
