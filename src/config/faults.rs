//! What does not fit together, listed at once.

use crate::decoder::PROJECTOR;
use crate::structure::QueriesConfig;
use crate::text::Structures;

use super::Config;

impl Config {
    /// Faults between parts, named by key.
    pub(super) fn shape_faults(&self) -> Vec<String> {
        let mut faults = self.volume.faults("volume");
        faults.extend(self.vision.ct_vit.faults("vision.ct_vit", self.volume.shape()));
        faults.extend(self.phantoms.iter().flat_map(|phantoms| phantoms.faults("phantoms")));
        faults.extend(self.structure_faults());
        faults.extend(self.decoder_faults());
        faults
    }

    fn structure_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let queries = &self.structure.queries;
        if queries.patch_width() != self.vision.ct_vit.dim {
            let dim = self.vision.ct_vit.dim;
            faults.push(format!("structure.queries.patch_width: {} is not vision.ct_vit.dim {dim}", queries.patch_width()));
        }
        let heads = match queries {
            QueriesConfig::Ours(config) => config.heads,
            QueriesConfig::Reference(config) => config.heads,
        };
        if heads == 0 || !queries.width().is_multiple_of(heads) {
            faults.push(format!("structure.queries.heads: {heads} do not divide the width {}", queries.width()));
        }
        match Structures::load(&self.text.structures) {
            Err(error) => faults.push(format!("text.structures: {error}")),
            Ok(structures) if structures.names().len() != queries.structures() => {
                let names = structures.names().len();
                faults.push(format!("structure.queries.structures: {} queries for {names} structures", queries.structures()));
            }
            Ok(_) => {}
        }
        let patches: usize = self.vision.ct_vit.grid(self.volume.shape()[0]).iter().product();
        if self.structure.selection.patches > patches {
            let selected = self.structure.selection.patches;
            faults.push(format!("structure.selection.patches: {selected} exceeds the {patches} patches of a volume"));
        }
        if self.structure.queries.standardise_momentum().is_some() && self.train_structure.training.batch < 2 {
            faults.push(
                "train_structure.training.batch: observations are standardised over the batch, which must hold at least 2".to_string(),
            );
        }
        faults
    }

    fn decoder_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let visual = self.structure.visual_tokens();
        faults.extend(self.llama.generation.faults("llama.generation"));
        faults.extend(self.bert.generation.faults("bert.generation"));
        if self.bert.generation.drafts > 0 {
            faults.push(format!(
                "bert.generation.drafts: must be 0, found {}: guesses are checked by LLaMA alone",
                self.bert.generation.drafts
            ));
        }
        for (key, weight) in
            [("llama.rare_token_weight", self.llama.rare_token_weight), ("bert.rare_token_weight", self.bert.rare_token_weight)]
        {
            if weight.is_nan() || weight < 1.0 {
                faults.push(format!("{key}: {weight} is below 1"));
            }
        }
        faults.extend(self.llama.lora.faults("llama.lora"));
        if self.llama.lora.modules_to_save != [PROJECTOR] {
            let found = &self.llama.lora.modules_to_save;
            faults.push(format!("llama.lora.modules_to_save: [{PROJECTOR}] is what is trained beside the adapter, found {found:?}"));
        }
        if let Some(language) = &self.language {
            faults.extend(language.model.faults("language.model"));
            let longest = visual + 1 + self.llama.max_report_tokens;
            if self.llama.base.is_none() && longest > language.model.max_position_embeddings {
                let limit = language.model.max_position_embeddings;
                faults.push(format!(
                    "language.model.max_position_embeddings: {limit} holds no {visual} visual tokens and llama.max_report_tokens {}",
                    self.llama.max_report_tokens
                ));
            }
        }
        for (key, folder) in [("llama.base", &self.llama.base), ("bert.tokenizer", &self.bert.tokenizer)] {
            if folder.is_none() && self.language.is_none() {
                faults.push(format!("{key}: neither a folder nor a language model of the run's own (language is null)"));
            }
        }
        let (bert, width) = (&self.bert.model, self.structure.queries.width());
        if self.bert.projector.is_none() && bert.hidden_size != width {
            faults.push(format!("bert.projector: null, but the decoder's width {} is not the visual tokens' {width}", bert.hidden_size));
        }
        if bert.num_attention_heads == 0 || !bert.hidden_size.is_multiple_of(bert.num_attention_heads) {
            faults.push(format!("bert.model.num_attention_heads: {} do not divide {}", bert.num_attention_heads, bert.hidden_size));
        }
        if self.bert.max_report_tokens > bert.max_position_embeddings {
            let limit = bert.max_position_embeddings;
            faults.push(format!(
                "bert.max_report_tokens: {} exceeds bert.model.max_position_embeddings {limit}",
                self.bert.max_report_tokens
            ));
        }
        faults
    }
}
