//! An adapter's configuration.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::Targets;
use crate::targets::{Pattern, layer_index};

/// Rank, scale, dropout and targets of an adapter. Keys mean what they mean to PEFT 0.13.2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r.
    pub r: usize,
    /// The scale is `alpha / r`, or `alpha / sqrt(r)` if rank-stabilised.
    pub alpha: f64,
    /// Dropout on the adapter's input in training.
    pub dropout: f64,
    /// Which modules are adapted.
    pub target_modules: Targets,
    /// Rank-stabilised scale.
    pub rslora: bool,
    /// Weight-decomposed adaptation: a learned magnitude a row of the adapted weight.
    pub dora: bool,
    /// Ranks of modules that have not rank r, by the end of their path or a regular expression; the first that matches counts.
    pub rank_pattern: IndexMap<String, usize>,
    /// Alphas in place of `alpha`, likewise.
    pub alpha_pattern: IndexMap<String, f64>,
    /// Layers whose modules are adapted; empty: all.
    pub layers_to_transform: Vec<usize>,
    /// Names of the lists that those layers stand in (`layers`); empty: any.
    pub layers_pattern: Vec<String>,
    /// Modules that are trained whole and travel with the adapter.
    pub modules_to_save: Vec<String>,
}

impl LoraConfig {
    /// LoRA of rank r on `targets`, everything else plain.
    pub fn plain(r: usize, alpha: f64, targets: Targets) -> Self {
        LoraConfig {
            r,
            alpha,
            dropout: 0.0,
            target_modules: targets,
            rslora: false,
            dora: false,
            rank_pattern: IndexMap::new(),
            alpha_pattern: IndexMap::new(),
            layers_to_transform: Vec::new(),
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
        }
    }

    /// Rank of the module at `path` (`model.layers.0.self_attn.q_proj`).
    pub fn rank(&self, path: &str) -> usize {
        self.pattern_key(path).and_then(|key| self.rank_pattern.get(key)).copied().unwrap_or(self.r)
    }

    /// Alpha of the module at `path`.
    pub fn alpha(&self, path: &str) -> f64 {
        self.pattern_key(path).and_then(|key| self.alpha_pattern.get(key)).copied().unwrap_or(self.alpha)
    }

    /// What B A x is multiplied by in the module at `path`.
    pub fn scale(&self, path: &str) -> f64 {
        let rank = self.rank(path) as f64;
        self.alpha(path) / if self.rslora { rank.sqrt() } else { rank }
    }

    /// Whether the module at `path` is adapted.
    pub fn targets(&self, path: &str) -> bool {
        let names = match &self.target_modules {
            Targets::Pattern(_) if self.target_modules.is_all_linear() => return true,
            Targets::Pattern(pattern) => return Pattern::whole(pattern).is_ok_and(|pattern| pattern.matches(path)),
            Targets::Names(names) => names,
        };
        // a whole path is meant whatever its layer, as in PEFT
        names.iter().any(|name| name == path)
            || names.iter().any(|name| path.ends_with(&format!(".{name}"))) && self.in_a_transformed_layer(path)
    }

    /// Keys of the patterns that give no module of `paths` its rank or alpha.
    pub fn unused_patterns(&self, paths: &[String]) -> Vec<String> {
        let matches = |key: &str| paths.iter().any(|path| path == key || Pattern::end(key).is_ok_and(|pattern| pattern.matches(path)));
        let ranks = self.rank_pattern.keys().map(|key| ("rank_pattern", key));
        let all = ranks.chain(self.alpha_pattern.keys().map(|key| ("alpha_pattern", key)));
        all.filter(|(_, key)| !matches(key)).map(|(map, key)| format!("{map}.{key}")).collect()
    }

    /// Every fault, named by key below `prefix`.
    pub fn faults(&self, prefix: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if self.r == 0 {
            faults.push(format!("{prefix}.r: must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            faults.push(format!("{prefix}.dropout: {} is not in [0, 1)", self.dropout));
        }
        if !self.alpha.is_finite() {
            faults.push(format!("{prefix}.alpha: {} is not a number", self.alpha));
        }
        faults.extend(self.target_modules.fault().map(|what| format!("{prefix}.target_modules: {what}")));
        for (key, rank) in &self.rank_pattern {
            let zero = (*rank == 0).then(|| "rank 0, must be at least 1".to_string());
            faults.extend(Pattern::end(key).err().or(zero).map(|what| format!("{prefix}.rank_pattern.{key}: {what}")));
        }
        for (key, alpha) in &self.alpha_pattern {
            let odd = (!alpha.is_finite()).then(|| format!("{alpha} is not a number"));
            faults.extend(Pattern::end(key).err().or(odd).map(|what| format!("{prefix}.alpha_pattern.{key}: {what}")));
        }
        let layered = !self.layers_to_transform.is_empty() || !self.layers_pattern.is_empty();
        if layered && matches!(self.target_modules, Targets::Pattern(_)) {
            faults.push(format!(
                "{prefix}.layers_to_transform: needs target_modules as a list (with a pattern, the pattern says the layers)"
            ));
        }
        for name in &self.layers_pattern {
            faults.extend(layer_index("", Some(name)).err().map(|what| format!("{prefix}.layers_pattern: {what}")));
        }
        faults
    }

    /// The first key of either pattern that matches: one key gives both rank and alpha, as in PEFT, even if only one map holds it.
    fn pattern_key(&self, path: &str) -> Option<&str> {
        let keys = self.rank_pattern.keys().chain(self.alpha_pattern.keys());
        let named = keys.map(String::as_str).find(|key| Pattern::end(key).is_ok_and(|pattern| pattern.matches(path)));
        named
            .or_else(|| self.rank_pattern.get_key_value(path).map(|(key, _)| key.as_str()))
            .or_else(|| self.alpha_pattern.get_key_value(path).map(|(key, _)| key.as_str()))
    }

    fn in_a_transformed_layer(&self, path: &str) -> bool {
        if self.layers_to_transform.is_empty() {
            return true;
        }
        let index = if self.layers_pattern.is_empty() {
            layer_index(path, None).ok().flatten()
        } else {
            self.layers_pattern.iter().find_map(|name| layer_index(path, Some(name)).ok().flatten())
        };
        index.is_some_and(|index| self.layers_to_transform.contains(&index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q0: &str = "model.layers.0.self_attn.q_proj";
    const Q1: &str = "model.layers.1.self_attn.q_proj";
    const DOWN: &str = "model.layers.1.mlp.down_proj";

    fn config(targets: &[&str]) -> LoraConfig {
        LoraConfig::plain(4, 8.0, Targets::Names(targets.iter().map(|name| name.to_string()).collect()))
    }

    fn pattern(pattern: &str) -> LoraConfig {
        LoraConfig::plain(4, 8.0, Targets::Pattern(pattern.to_string()))
    }

    #[test]
    fn a_name_targets_the_end_of_a_path_at_a_dot() {
        let config = config(&["q_proj", "mlp.down_proj"]);
        assert!(config.targets(Q0) && config.targets(DOWN));
        assert!(!config.targets("model.layers.0.self_attn.xq_proj") && !config.targets("model.q_proj.layers"));
    }

    #[test]
    fn a_pattern_targets_the_whole_path_and_all_linear_every_path() {
        assert!(pattern(r"model\.layers\.0\..*_proj").targets(Q0) && !pattern(r"model\.layers\.0\..*_proj").targets(Q1));
        assert!(!pattern("q_proj").targets(Q0), "PEFT matches a pattern in full");
        assert!(pattern(r"(?!.*mlp).*(q_proj|down_proj)").targets(Q0) && !pattern(r"(?!.*mlp).*(q_proj|down_proj)").targets(DOWN));
        assert!(pattern("all-linear").targets(Q0) && pattern("All-Linear").targets(DOWN));
    }

    #[test]
    fn layers_to_transform_leaves_the_others_and_a_whole_path_overrides_it() {
        let only = LoraConfig { layers_to_transform: vec![1], ..config(&["q_proj"]) };
        assert!(!only.targets(Q0) && only.targets(Q1));
        let other = LoraConfig { layers_pattern: vec!["h".into()], ..only.clone() };
        assert!(!other.targets(Q1));
        let named = LoraConfig { layers_pattern: vec!["h".into(), "layers".into()], ..only.clone() };
        assert!(named.targets(Q1));
        assert!(LoraConfig { target_modules: Targets::Names(vec![Q0.into()]), ..only }.targets(Q0));
    }

    #[test]
    fn ranks_and_alphas_are_those_of_the_first_pattern_that_matches() {
        let mut config = config(&["q_proj", "down_proj"]);
        config.rank_pattern = IndexMap::from([("layers.0.self_attn.q_proj".into(), 2), ("q_proj".into(), 16)]);
        config.alpha_pattern = IndexMap::from([("q_proj".into(), 64.0)]);
        assert_eq!([config.rank(Q0), config.rank(Q1), config.rank(DOWN)], [2, 16, 4]);
        // in PEFT the key found for the rank is the key that alpha is looked up by: layer 0 has its own, without an alpha
        assert_eq!([config.alpha(Q0), config.alpha(Q1), config.alpha(DOWN)], [8.0, 64.0, 8.0]);
        assert_eq!([config.scale(Q0), config.scale(Q1), config.scale(DOWN)], [4.0, 4.0, 2.0]);
    }

    #[test]
    fn a_pattern_key_is_a_regular_expression_that_ends_the_path() {
        let mut config = config(&["q_proj"]);
        config.rank_pattern = IndexMap::from([(r"\d+\.mlp\.(up|down)_proj".into(), 3), ("proj".into(), 9)]);
        assert_eq!([config.rank(DOWN), config.rank(Q0)], [3, 4]);
    }

    #[test]
    fn rank_stabilised_scale_divides_by_the_root_of_the_rank() {
        let config = LoraConfig { r: 16, alpha: 32.0, rslora: true, ..config(&["q_proj"]) };
        assert_eq!(config.scale(Q0), 8.0);
    }

    #[test]
    fn faults_are_named_by_key() {
        let config = LoraConfig {
            r: 0,
            dropout: 1.0,
            target_modules: Targets::Pattern("(".into()),
            rank_pattern: IndexMap::from([("q_proj".into(), 0)]),
            alpha_pattern: IndexMap::from([("[".into(), 1.0)]),
            layers_to_transform: vec![0],
            ..config(&[])
        };
        let faults = config.faults("lora");
        let keys = ["lora.r:", "lora.dropout:", "lora.target_modules:", "lora.rank_pattern.q_proj:", "lora.alpha_pattern.[:"];
        for key in keys.iter().chain(&["lora.layers_to_transform:"]) {
            assert!(faults.iter().any(|fault| fault.starts_with(key)), "{key} {faults:?}");
        }
        assert!(super::tests::config(&[]).faults("lora")[0].starts_with("lora.target_modules: names no module"));
    }
}
