"""Encoder + pooling + projection + head, as one transformers model.

Decisions: a frozen encoder stays in eval mode and outside the graph. A head-only checkpoint names its base and has a
digest of the base's weights, because a head on another encoder fails silently otherwise. `forward` takes no **kwargs,
because transformers' Trainer would then rescale the loss under gradient accumulation. A model with concatenated context
pools a cycle and its context separately; its embedding is the concatenation of both.
"""

import builtins
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedModel

from laennec.audio.features import LaennecFeatureExtractor
from laennec.configuration import CHANGEABLE, SETTINGS, LaennecConfig
from laennec.encoders import adapters, as_encoder, encoder_digest, encoder_from_config, load_encoder, wrapped
from laennec.encoders.base import AudioEncoder, TokenMix
from laennec.encoders.masks import token_mean
from laennec.encoders.own import ModuleEncoder, contains_own
from laennec.encoders.weights import bases
from laennec.encoders.weights.checkpoints import LOADING_ERRORS, loaded_strictly
from laennec.encoders.weights.fingerprint import check_fingerprint, make_contiguous, record_fingerprint
from laennec.errors import InputError
from laennec.head import Head, LaennecOutput
from laennec.untrusted import refuse_model_folder

LORA_DEFAULTS: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
TRAINABLE = ("full", "frozen", "last_n", "lora")
# tensors that only training needs: the projection feeds auxiliary losses
_TRAINING_ONLY = ("projection.",)


class LaennecForAudioClassification(PreTrainedModel):
    """An audio encoder with a crackle/wheeze head (or any other label set).

    Args:
        config: The whole model's configuration; without `encoder`, the encoder is built from it with random weights.
        encoder: A built encoder, whose weights are kept.
    """

    config_class = LaennecConfig
    config: LaennecConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    supports_gradient_checkpointing = AudioEncoder.supports_gradient_checkpointing
    _supports_sdpa = True
    accepts_loss_kwargs = False

    def __init__(self, config: LaennecConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            encoder = encoder_from_config(config.encoder_config)
        elif config.encoder_digest is None and (config.frozen_encoder or config.base_model_name_or_path):
            config.encoder_digest = encoder_digest(encoder)
        self.encoder = make_contiguous(encoder)
        dim = self.embedding_dim
        norm_eps = getattr(config.encoder_config, "layer_norm_eps", 1e-12) if config.head_layer_norm else None
        head = (config.head_hidden_dim, config.head_dropout, norm_eps, config.head_relu, config.head_members)
        self.head = Head(dim, config.num_labels, *head)
        # task heads are applied outside `forward`: their rows are other spans, or are needed all at once
        self.tasks = nn.ModuleDict(
            {name: Head(dim, len(task["labels"]), 0, config.head_dropout) for name, task in config.tasks.items()}
        )
        self.projection = (
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.projection_dim))
            if config.projection_dim
            else None
        )
        # transformers re-initialises models without `post_init`; the weights of a given encoder are kept
        given = None
        if contains_own(config.encoder_config) and not any(value.is_meta for value in encoder.state_dict().values()):
            given = {name: value.clone() for name, value in encoder.state_dict().items()}
        self.post_init()
        if given is not None:
            encoder.load_state_dict(given)
        # FSDP may shard whole layers only: encoders use weights of their other modules without calling these
        self._no_split_modules = adapters.layer_classes(encoder)
        # set by training schedules while only the head is trained
        self.encoder_frozen_in_stage = False
        if config.frozen_encoder:
            self.freeze_encoder()

    @classmethod
    def from_encoder(
        cls,
        encoder: str | Path | nn.Module | None,
        labels: Sequence[str] = ("crackle", "wheeze"),
        problem_type: str = "multi_label",
        *,
        type: str | builtins.type[nn.Module] | None = None,
        revision: str | None = None,
        encoder_config: Mapping[str, Any] | None = None,
        trainable: str = "full",
        last_layers: int = 0,
        lora: Mapping[str, Any] | None = None,
        group_frames: int = 0,
        group_step: int = 15,
        layers: Sequence[int | str] = (),
        combine_layers: str = "concatenate",
        features: LaennecFeatureExtractor | None = None,
        base: str | Path | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> "LaennecForAudioClassification":
        """Put a new head on an encoder; the model is ready for training.

        Args:
            encoder: What `load_encoder` takes (a released file, a folder, a Hub id, or None for random weights), or an
                encoder: one of laennec's, or any module of yours that returns an object with `last_hidden_state`
                (batch, tokens, dim), `token_mask` (batch, tokens) and `pooler_output` (batch, dim).
            labels: Names of the labels, in the order of the logits.
            problem_type: "multi_label" (independent labels) or "single_label" (exactly one class).
            type: The type of encoder ("ast", "beats", ...) or your own class; needed for random weights.
            revision: Of a Hub id.
            encoder_config: Settings of the encoder, as `load_encoder` takes them.
            trainable: "full", "frozen", "last_n" (the last layers alone) or "lora" (adapters alone).
            last_layers: How many layers "last_n" trains.
            lora: rank, alpha, dropout and target_modules of the adapters, where they differ from `LORA_DEFAULTS`.
            group_frames: Frames of the overlapping groups that are encoded one by one; 0 for whole cycles.
            group_step: Frames from the start of a group to that of the next.
            layers: Layers whose means over time form the embedding: numbers from 1 or -1; "embedding" is the encoder's.
            combine_layers: "concatenate", or "weighted_mean" with trained weights (trainable "full" or "last_n").
            features: The front end; the configuration records its sampling rate and fingerprint.
            base: Where the weights of an encoder that is an object came from; a head-only export names it.
            seed: Of the initial weights of the head, and of an encoder with random weights.
            **settings: Further settings of `LaennecConfig`: pooling, head_hidden_dim, head_dropout, head_layer_norm,
                head_relu, projection_dim, concatenated_context, tasks.

        Raises:
            InputError: The encoder cannot be loaded, returns other outputs, or cannot be trained that way.
            ValueError: `trainable` or the name of a setting is unknown.
        """
        if trainable not in TRAINABLE:
            raise ValueError(f"trainable is {trainable!r}; it can be {', '.join(TRAINABLE)}")
        if combine_layers == "weighted_mean" and trainable not in ("full", "last_n"):
            raise InputError("combine_layers: weighted_mean needs trainable: full or last_n; concatenate the layers")
        if problem_type == "single_label" and len(labels) < 2:
            raise InputError("problem_type single_label needs two labels or more; choose multi_label")
        if unknown := sorted(settings.keys() - {*SETTINGS, *LaennecConfig.__annotations__}):
            raise ValueError(f"LaennecConfig has no setting {unknown[0]!r}; correct its name")
        torch.manual_seed(seed)
        mels = None if features is None else features.feature_size
        if isinstance(encoder, nn.Module):
            known = isinstance(encoder, AudioEncoder | ModuleEncoder)
            module = encoder if known else as_encoder(encoder, mels)
        else:
            module = load_encoder(encoder, type=type, revision=revision, **(encoder_config or {}))
            base = base or encoder
        revision = getattr(module.config, "_commit_hash", None) or revision  # a wrapper's configuration has none
        module = wrapped(module, group_frames, group_step, layers, combine_layers, mels)
        if features is not None:
            settings |= {"sampling_rate": features.sampling_rate, "features_fingerprint": features.fingerprint()}
        config = LaennecConfig(
            encoder_config=module.config,
            problem_type=problem_type,
            frozen_encoder=trainable == "frozen",
            base_model_name_or_path=None if base is None else str(base),
            base_model_revision=revision,
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            **settings,
        )
        model = cls(config, module)
        if trainable == "lora":
            model.add_adapters({**LORA_DEFAULTS, **(lora or {})})
        elif trainable == "last_n":
            model.train_last_layers(last_layers)
        return model

    @property
    def embedding_dim(self) -> int:
        """Width of what `embed` returns."""
        return int(self.encoder.config.hidden_size) * (2 if self.config.concatenated_context else 1)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """None: sound has no embedding table, and the one transformers would find cannot be sharded by itself."""

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the standardisation of a head; other weights keep the values their classes gave them."""
        if isinstance(module, Head):
            nn.init.ones_(module.spread)
            nn.init.zeros_(module.mean)

    def freeze_encoder(self) -> None:
        """Freeze the encoder: no gradients, no updates of batch statistics."""
        self.config.frozen_encoder = True
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train_last_layers(self, layers: int) -> None:
        """Train only the last layers of the encoder, and freeze those before them."""
        adapters.freeze_all_but_last(self.encoder, layers)
        self.config.trained_layers = layers

    def add_adapters(self, lora: Mapping[str, Any]) -> None:
        """Put LoRA adapters (see `LaennecConfig.lora`) into the encoder, whose own weights are then frozen."""
        config, digest = self.config, encoder_digest(self.encoder)
        if config.encoder_digest != digest:  # the encoder was trained, so its base has other weights
            config.base_model_name_or_path = config.base_model_revision = None
        config.encoder_digest = digest
        adapters.add_lora(self.encoder, lora)
        self.config.lora = dict(lora)

    def merge_adapters(self) -> None:
        """Add the adapters to the encoder's weights; the model is then like one that was trained in full."""
        adapters.merge_lora(self.encoder)
        self.config.lora = self.config.encoder_digest = None

    def is_frozen(self, name: str) -> bool:
        """Whether a weight, by its name in the state dict, is frozen at its value in the base."""
        return name.startswith("encoder.") and adapters.is_frozen(self.config, name)

    def train(self, mode: bool = True) -> "LaennecForAudioClassification":
        """Switch between training and evaluation mode; frozen layers stay in evaluation mode."""
        self.training = mode
        for name, module in self.named_children():
            if name == "encoder":
                adapters.set_mode(self.encoder, self.config, mode and not self.encoder_frozen_in_stage)
            else:
                module.train(mode)
        return self

    def embed(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        context_values: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mix: TokenMix | None = None,
    ) -> Tensor:
        """Encode and pool: (batch, frames, mels), (batch, frames) -> (batch, dim); arguments as in `forward`."""
        own = self._pooled(input_values, attention_mask, token_mix)
        if not self.config.concatenated_context:
            if context_values is not None:
                raise ValueError("context_values were given to a model without concatenated context; leave them out")
            return own
        context = own if context_values is None else self._pooled(context_values, context_mask)
        return torch.cat([own, context], 1)

    def _pooled(self, input_values: Tensor, attention_mask: Tensor | None, token_mix: TokenMix | None = None) -> Tensor:
        frozen = self.config.frozen_encoder or self.encoder_frozen_in_stage
        mixing = {} if token_mix is None else {"token_mix": token_mix}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            out = self.encoder(input_values=input_values, attention_mask=attention_mask, **mixing)
            if self.config.pooling == "encoder":
                pooled: Tensor = out.pooler_output
                return pooled
            special = int(getattr(self.encoder, "num_special_tokens", 0))
            return token_mean(out.last_hidden_state, out.token_mask, special)

    def encode(self, paths: Any, jobs: int = 1, backend: str = "auto", layer: int | None = None, **spans: Any) -> Any:
        """Embed the windows of recordings (`laennec embed`).

        Args:
            paths: Audio files and folders.
            jobs: Number of processes.
            backend: "torch", "onnx" or "auto".
            layer: A layer of the encoder, from 1 or from -1 backwards; None for the embedding that the head takes.
            **spans: window_s, hop_s, annotation (a file or a folder); extractor, for a model made in Python.

        Returns:
            pandas.DataFrame of float32, a row for each span, indexed by recording, start_s and end_s; `numpy.asarray`
            makes it (spans, dim). A recording that cannot be read is left out with a warning; if none can, an error.
        """
        from laennec.inference.embed import encode

        return encode(self, paths, jobs=jobs, backend=backend, layer=layer, **spans)

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        embeddings: Tensor | None = None,
        return_dict: bool | None = None,
        context_values: Tensor | None = None,
        context_mask: Tensor | None = None,
        token_mix: TokenMix | None = None,
    ) -> LaennecOutput | tuple[Tensor, ...]:
        """Classify cycles.

        Args:
            input_values: (batch, frames, mels), from the model's feature extractor.
            attention_mask: (batch, frames), 1 on real frames; None where every frame is real.
            labels: (batch, labels) of 0/1 (or soft values) for multi_label; class numbers (batch,) or soft rows
                (batch, labels) for single_label.
            embeddings: (batch, dim) instead of `input_values`, where the encoder has run already.
            return_dict: False for a plain tuple.
            context_values: (batch, frames, mels), each cycle with its neighbours, for a model with concatenated
                context; None where no cycle has any.
            context_mask: (batch, frames), 1 on real frames of `context_values`.
            token_mix: Patches exchanged between cycles inside the encoder, in training.

        Raises:
            ValueError: Neither `input_values` nor `embeddings` was given, or `context_values` to a model without.
        """
        if embeddings is None:
            if input_values is None:
                raise ValueError("give input_values (features of the cycles) or embeddings")
            embeddings = self.embed(input_values, attention_mask, context_values, context_mask, token_mix)
        logits = self.head(embeddings)
        output = LaennecOutput(
            loss=None if labels is None else self.task_loss(logits, labels),
            logits=logits,
            embeddings=embeddings,
            projections=None if self.projection is None else self.projection(embeddings),
        )
        return output.to_tuple() if return_dict is False else output

    def task_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Unweighted mean BCE (multi_label) or cross entropy (single_label)."""
        if self.config.is_multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return nn.functional.cross_entropy(logits, labels)

    def probabilities(self, logits: Tensor, spans: str = "events") -> Tensor:
        """(batch, labels) logits -> probabilities of the same shape, calibrated as in `LaennecConfig.per_label`."""
        divisor, offset = (
            torch.tensor([*self.config.per_label(name, spans).values()], device=logits.device)
            for name in ("temperatures", "intercepts")
        )
        scaled = logits.float() / divisor + offset
        return scaled.sigmoid() if self.config.is_multi_label else scaled.softmax(-1)

    def save_pretrained(self, save_directory: str | Path, head_only: bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Save config and weights (safetensors).

        Args:
            save_directory: The folder.
            head_only: Whether to leave the encoder out (but for its adapters); None leaves it out where it is not
                trained and has the weights of a known base.
            **kwargs: Handed to transformers.

        Raises:
            ValueError: A model with adapters cannot be saved in full before they are merged.
        """
        # weights in half precision have another digest than those of the base
        digest, fixed = self.config.encoder_digest, bool(self.config.lora) or self.dtype != torch.float32
        if head_only is None:
            head_only = self.is_frozen("encoder.") and bool(self.config.base_model_name_or_path)
            head_only = head_only and (fixed or encoder_digest(self.encoder) == digest)
        if self.config.lora and not head_only:
            raise ValueError("this model has adapters: call merge_adapters() before it is saved in full")
        state = kwargs.pop("state_dict", None) or self.state_dict()
        if head_only:
            state = {k: v for k, v in state.items() if not k.startswith("encoder.")}
            self.config.encoder_digest = (digest if fixed else None) or encoder_digest(self.encoder)
            bases.remember_base(self.config)
        else:
            record_fingerprint(self.encoder)
            self.config.encoder_config = self.encoder.config
        before, self.config.head_only = self.config.head_only, head_only
        try:
            adapters.save_adapter(self.encoder, self.config, save_directory)
            return super().save_pretrained(save_directory, state_dict=state, **kwargs)
        finally:
            self.config.head_only, self.config.encoder_digest = before, digest

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        extractor: LaennecFeatureExtractor | None = None,
        commit_message: str | None = None,
        private: bool = True,
        token: str | None = None,
        revision: str | None = None,
        **saving: Any,
    ) -> str:
        """Push the model to the Hub with its front end and a card, as `laennec push` does; returns the address.

        Args:
            repo_id: OWNER/NAME; created if it does not exist.
            extractor: The front end; None for the one beside the files that the model was loaded from.
            commit_message: None for a default.
            private: Whether a new repository stays private; False makes the repository public.
            token: None for HF_TOKEN or that of the login.
            revision: The branch; None for main.
            **saving: Handed to `save_pretrained`, e.g. head_only.
        """
        from laennec.hub.push import push_model

        where = {"extractor": extractor, "private": private, "token": token, "revision": revision}
        return push_model(self, repo_id, message=commit_message, **where, **saving).url  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *args: Any,
        config: LaennecConfig | None = None,
        base: str | Path | PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> "LaennecForAudioClassification":
        """Load a model from a folder or the Hub; a head-only one with its base.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            *args: Handed to transformers.
            config: The configuration, if it was loaded already.
            base: The base encoder of a head-only model (folder, file, Hub id or encoder), where it is not at the place
                the config names.
            **kwargs: Settings of the configuration, such as thresholds; the rest is handed to transformers.

        Raises:
            InputError: Not a laennec model, settings that are invalid or do not fit the weights, or a missing base.
        """
        source = pretrained_model_name_or_path
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)  # pickled files can hold code
        hub: dict[str, Any] = {
            k: kwargs[k] for k in ("revision", "cache_dir", "token", "local_files_only", "subfolder") if k in kwargs
        }
        kwargs.pop("adapter_kwargs", None)  # Auto classes pass adapters found beside the model, which are refused
        try:
            refuse_model_folder(Path(source) / hub.get("subfolder", ""))
            bases.refuse_untrusted_adapter(source, hub)
            if config is None:
                changes = {name: kwargs.pop(name) for name in CHANGEABLE & kwargs.keys()}
                config = LaennecConfig.load(source, changes, **hub)
            encoder = bases.base_encoder(config, base) if config.head_only else None
            bases.refuse_larger_model(config, lambda: cls(copy.deepcopy(config)), encoder, source, hub)
            absent = (*_TRAINING_ONLY, "encoder.") if config.head_only else _TRAINING_ONLY
            settings = {**kwargs, "config": config, "absent": absent}
            model, info = loaded_strictly(super().from_pretrained, source, "laennec model", *args, **settings)
        except InputError:
            raise
        except LOADING_ERRORS as error:
            raise bases.loading_error(source, error) from error
        if encoder is not None:
            # transformers gives random weights to an encoder that the checkpoint leaves out; the base replaces it
            model.encoder = adapters.with_adapter(encoder, config, source, hub)
        else:
            if contains_own(model.encoder.config):
                # built again, because transformers leaves buffers that are not saved undefined
                state, model.encoder = model.encoder.state_dict(), encoder_from_config(model.encoder.config).eval()
                model.encoder.load_state_dict(state)
            check_fingerprint(model.encoder, source)
        make_contiguous(model)
        bases.refuse_wrong_buffers(model, source)
        model.config.head_only = False
        if config.frozen_encoder:
            model.freeze_encoder()
        elif config.trained_layers:
            model.train_last_layers(config.trained_layers)
        loaded: Any = (model, info) if wants_info else model
        return loaded


def _register_pipeline() -> None:
    """Import the pipeline, which registers itself; it is imported last, because it needs this module."""
    import laennec.inference.pipeline  # noqa: F401


AutoConfig.register("laennec", LaennecConfig)
AutoModelForAudioClassification.register(LaennecConfig, LaennecForAudioClassification)
AutoFeatureExtractor.register(LaennecConfig, LaennecFeatureExtractor)
_register_pipeline()
