//! Parameters, operations and kept values of the models, counted from their sizes.

use crate::config::Config;
use crate::decoder::LlamaConfig;
use crate::decoder::bert::BertDecoderConfig;
use crate::vision::CtVitConfig;
use crate::weights::Mapped;
use crate::{Error, Result};

/// How a model is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Forward only.
    Forward,
    /// Forward and backward.
    Train,
    /// Forward, once more layer by layer, and backward.
    Recompute,
}

/// A stack of layers over one sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// Parameters.
    pub parameters: f64,
    /// Whether the parameters learn: the backward pass then has two products for each of the forward's, else one.
    pub learns: bool,
    /// Layers.
    pub layers: usize,
    /// Tokens.
    pub tokens: usize,
    /// Width of a token.
    pub width: usize,
    /// Operations of the forward pass.
    pub forward: f64,
    /// Values of f32's size that a layer keeps of a token for the backward pass.
    pub kept: usize,
    /// Values that a layer holds of a token while it is run.
    pub worked: usize,
    /// Values that a layer holds of a token while its gradient is made, beside what it kept.
    pub turned: usize,
    /// Operations of the layers' second run.
    pub again: f64,
    /// Values of f32's size that each value of a layer's input takes where nothing else is kept.
    pub input: f64,
}

impl Model {
    /// Operations of a pass over the sequence.
    pub fn operations(&self, pass: Pass) -> f64 {
        let backward = if self.learns { 2.0 } else { 1.0 };
        match pass {
            Pass::Forward => self.forward,
            Pass::Train => self.forward * (1.0 + backward),
            Pass::Recompute => self.forward * (1.0 + backward) + self.again,
        }
    }

    /// Values held at a pass's peak, the parameters left out.
    pub fn held(&self, pass: Pass) -> f64 {
        let (layers, tokens) = (self.layers as f64, self.tokens as f64);
        let turned = tokens * self.turned as f64;
        match pass {
            Pass::Forward => tokens * self.worked as f64,
            Pass::Train => layers * tokens * self.kept as f64 + turned,
            Pass::Recompute => layers * tokens * self.width as f64 * self.input + tokens * self.kept as f64 + turned,
        }
    }
}

/// LLaMA's frozen base.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// Its sizes.
    pub config: LlamaConfig,
    /// Bytes of its weights.
    pub bytes: u64,
    /// Whether they are f32.
    pub f32: bool,
}

impl Base {
    /// Bytes of its weights in f32.
    pub fn bytes_in_f32(&self) -> u64 {
        4 * values(&self.config)
    }
}

fn values(sizes: &LlamaConfig) -> u64 {
    sizes.tensors().iter().map(|(_, shape, _)| shape.iter().product::<usize>() as u64).sum()
}

/// The base that a run's LLaMA stands on, as far as it is at hand, and what was assumed of it.
pub fn base(config: &Config) -> Result<(Vec<String>, Base)> {
    if let Some(language) = &config.language {
        let mut sizes = language.model.clone();
        sizes.vocab_size = if sizes.vocab_size == 0 { language.vocabulary } else { sizes.vocab_size };
        let bytes = 4 * values(&sizes);
        return Ok((
            vec![format!("LLaMA: the run's own language model, {:.1} MB", bytes as f64 / 1e6)],
            Base { config: sizes, bytes, f32: true },
        ));
    }
    let folder =
        config.llama.base.as_ref().ok_or_else(|| Error::Invalid("llama.base: null, and there is no language model".to_string()))?;
    if !folder.exists() {
        let sizes = LlamaConfig::named("llama2-7b")?;
        let bytes = 2 * values(&sizes);
        return Ok((
            vec![format!("{}: not at hand; LLaMA2-7B's sizes in 16 bits are assumed", folder.display())],
            Base { config: sizes, bytes, f32: false },
        ));
    }
    let mapped = Mapped::open(folder)?;
    let (sizes, bytes) = (LlamaConfig::of_base(folder, &mapped)?, mapped.bytes());
    let f32 = bytes >= 4 * values(&sizes);
    Ok((vec![format!("{}: {:.2} GB of weights", folder.display(), bytes as f64 / 1e9)], Base { config: sizes, bytes, f32 }))
}

/// LLaMA on `tokens`, `labelled` of them with a next token to learn; `exact`: multiplied in f32, which keeps f32.
pub fn llama(sizes: &LlamaConfig, (tokens, labelled): (usize, usize), exact: bool) -> Model {
    let (h, f, layers) = (sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers);
    let (q, kv) = (sizes.num_attention_heads * sizes.head_width(), sizes.kv_heads() * sizes.head_width());
    let layer = (h * (2 * q + 2 * kv + 3 * f)) as f64;
    let (t, words) = (tokens as f64, (sizes.vocab_size * h) as f64);
    // a causal token sees half of the others, in two products
    let run = 2.0 * layer * layers as f64 * t + 2.0 * t * t * (q * layers) as f64;
    Model {
        parameters: layer * layers as f64 + 2.0 * words,
        learns: false,
        layers,
        tokens,
        width: h,
        forward: run + 2.0 * words * labelled as f64,
        // the inputs of attention and of the feed-forward block, and (else in half of f32) queries, keys, values, what attention gave, gate and up
        kept: 2 * h + (2 * q + 2 * kv + 2 * f) / if exact { 1 } else { 2 },
        // of the feed-forward block: input, output, norm, gate and up
        worked: 3 * h + 2 * f,
        // of the feed-forward block, beside gate and up, whose place their gradients take: the gradient of what they make, and the factor of a product
        // in half of f32; the gradients of its output and input; the last norm, the loss's gradient and what it came from
        turned: 5 * h + f + f / 2,
        // all but the product with down, which nobody reads
        again: run - 2.0 * (h * f * layers) as f64 * t,
        // rounded where products are (decoder::Llama)
        input: if exact { 1.0 } else { 0.5 },
    }
}

/// Values of LoRA's adapters and the projector.
pub fn adapters(config: &Config, sizes: &LlamaConfig) -> f64 {
    let (h, f) = (sizes.hidden_size, sizes.intermediate_size);
    let (q, kv) = (sizes.num_attention_heads * sizes.head_width(), sizes.kv_heads() * sizes.head_width());
    let projections = [
        ("q_proj", h + q),
        ("k_proj", h + kv),
        ("v_proj", h + kv),
        ("o_proj", q + h),
        ("gate_proj", h + f),
        ("up_proj", h + f),
        ("down_proj", f + h),
    ];
    let lora = &config.llama.lora;
    let adapted = |layer: usize, (name, size): &(&str, usize)| {
        let part = if name.starts_with(['q', 'k', 'v', 'o']) { "self_attn" } else { "mlp" };
        let path = format!("model.layers.{layer}.{part}.{name}");
        if lora.targets(&path) { lora.rank(&path) * size } else { 0 }
    };
    let lora: usize = (0..sizes.num_hidden_layers).flat_map(|layer| projections.iter().map(move |one| adapted(layer, one))).sum();
    (lora + config.structure.queries.width() * h) as f64
}

/// The BERT decoder on `tokens` that look at `visual` tokens.
pub fn bert(sizes: &BertDecoderConfig, vocabulary: usize, tokens: usize, visual: usize) -> Model {
    let (h, f, layers) = (sizes.hidden_size, sizes.intermediate_size, sizes.num_hidden_layers);
    let layer = (8 * h * h + 2 * h * f) as f64;
    let (t, v) = (tokens as f64, visual as f64);
    // own products on its tokens, the visual tokens' keys and values, the words' scores, attention
    let forward = 2.0 * layers as f64 * ((layer - (2 * h * h) as f64) * t + (2 * h * h) as f64 * v)
        + 2.0 * (vocabulary * h) as f64 * t
        + 2.0 * (h * layers) as f64 * t * (t + 2.0 * v);
    Model {
        parameters: layer * layers as f64 + ((vocabulary + sizes.max_position_embeddings) * h) as f64,
        learns: true,
        layers,
        tokens,
        width: h,
        forward,
        kept: 14 * h + 2 * f,
        worked: 14 * h + 2 * f,
        turned: 14 * h + 2 * f,
        again: forward - 2.0 * (vocabulary * h) as f64 * t,
        input: 1.0,
    }
}

/// CT-ViT on a volume of `frames` frames.
pub fn ct_vit(sizes: &CtVitConfig, frames: usize) -> Model {
    let [t, gh, gw] = sizes.grid(frames);
    let (n, plane) = ((t * gh * gw) as f64, (gh * gw) as f64);
    let (d, inner, layers) = (sizes.dim, sizes.heads * sizes.dim_head, sizes.spatial_depth + sizes.temporal_depth);
    let hidden = d * 8 / 3;
    let layer = (4 * d * inner + 3 * d * hidden + 27 * d) as f64;
    let (patch, codes) = ((sizes.patch_voxels() * d) as f64, (sizes.codebook_size * d) as f64);
    let seen = sizes.spatial_depth as f64 * plane + sizes.temporal_depth as f64 * t as f64;
    let run = 2.0 * n * layer * layers as f64 + 4.0 * n * inner as f64 * seen;
    Model {
        parameters: layer * layers as f64 + patch + codes,
        learns: true,
        layers,
        tokens: t * gh * gw,
        width: d,
        forward: run + 2.0 * n * (patch + codes),
        kept: 8 * d + 5 * inner + 3 * hidden,
        worked: 8 * d + 5 * inner + 3 * hidden,
        turned: 8 * d + 5 * inner + 3 * hidden,
        again: run,
        input: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_2_7b_has_its_parameters_and_a_step_its_operations() {
        let sizes = LlamaConfig::named("llama2-7b").unwrap();
        let model = llama(&sizes, (526, 400), false);
        assert!((model.parameters / 6.738e9 - 1.0).abs() < 1e-3, "{}", model.parameters);
        // two operations a parameter and token, attention a few percent more, words only where they are learned
        let products = 2.0 * (model.parameters - 2.0 * 131.072e6) * 526.0 + 2.0 * 131.072e6 * 400.0;
        assert!((1.0..1.03).contains(&(model.operations(Pass::Forward) / products)));
        // run again: no words, and of each layer no product with down
        let again = 2.0 * (model.parameters - 2.0 * 131.072e6 - 32.0 * 4096.0 * 11_008.0) * 526.0;
        let more = model.operations(Pass::Recompute) - 2.0 * model.operations(Pass::Forward);
        assert!((1.0..1.03).contains(&(more / again)), "{more} for {again}");
        assert!(model.held(Pass::Recompute) < model.held(Pass::Train) / 2.0);
        let exact = llama(&sizes, (526, 400), true);
        assert!((1.5..2.0).contains(&(exact.held(Pass::Train) / model.held(Pass::Train))));
    }

    #[test]
    fn ct_vit_s_parameters_are_those_of_the_encoder() {
        let config = Config::load("ct-rate-llama2-7b", &[]).unwrap();
        let sizes = config.vision.ct_vit;
        let params = crate::weights::Params::fresh(7, &candle_core::Device::Cpu);
        crate::vision::CtVit::new(&sizes, &params).unwrap();
        let own: usize = params.trainable().iter().map(|(_, var)| var.elem_count()).sum();
        let counted = ct_vit(&sizes, 160).parameters - (sizes.codebook_size * sizes.dim) as f64;
        assert!((counted / own as f64 - 1.0).abs() < 0.02, "{counted} against {own}");
    }
}
