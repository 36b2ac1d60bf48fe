//! Stage one's text side: each report by structure, each structure's text as a frozen, centred unit feature.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::config::Config;
use crate::data::CachedStudy;
use crate::device::DeviceName;
use crate::text::{EncoderConfig, Structures, TextEncoder};
use crate::weights;
use crate::{Error, Result};

/// For each study and structure the feature of its text, where the report mentions the structure.
pub type Features = Vec<Vec<Option<Vec<f32>>>>;

/// Each structure's text of each report, encoded; features are cached in `cache` by the encoder and the text's hash. Texts that came ready-made
/// are taken; other reports are split by the rules.
pub fn encode_reports(config: &Config, studies: &[&CachedStudy], cache: Option<&Path>) -> Result<(Features, usize)> {
    let structures = Structures::load(&config.text.structures)?;
    let names = structures.names();
    let texts = |study: &&CachedStudy| match &study.structure_texts {
        Some(texts) => names.iter().map(|name| texts.get(*name).cloned()).collect(),
        None => structures.assign(&study.report).texts,
    };
    let assigned: Vec<Vec<Option<String>>> = studies.iter().map(texts).collect();
    let texts: Vec<String> = assigned.iter().flatten().flatten().cloned().collect();
    if texts.is_empty() {
        return Err(Error::Invalid("no report mentions any structure: stage one has nothing to learn from".to_string()));
    }
    let (features, width) = encode((&config.text.encoder, config.device), &texts, cache)?;
    let mut features = features.into_iter();
    let rows = assigned.iter().map(|study| study.iter().map(|text| text.as_ref().and_then(|_| features.next())).collect()).collect();
    Ok((rows, width))
}

/// The mean feature of each structure over the studies that mention it: (S, C_text).
pub fn structure_means(features: &Features, width: usize) -> Result<Tensor> {
    let structures = features.first().map_or(0, Vec::len);
    let mut means = vec![0f32; structures * width];
    for s in 0..structures {
        let own: Vec<&Vec<f32>> = features.iter().filter_map(|study| study[s].as_ref()).collect();
        let mean = &mut means[s * width..(s + 1) * width];
        for feature in &own {
            mean.iter_mut().zip(feature.iter()).for_each(|(mean, value)| *mean += value / own.len() as f32);
        }
    }
    Ok(Tensor::from_vec(means, (structures, width), &Device::Cpu)?)
}

/// Takes each structure's mean off (where there is one) and scales to unit length.
pub fn centre(features: &mut Features, means: Option<&Tensor>) -> Result<()> {
    let means: Option<Vec<Vec<f32>>> = means.map(Tensor::to_vec2).transpose()?;
    for study in features.iter_mut() {
        for (s, feature) in study.iter_mut().enumerate() {
            let Some(feature) = feature else { continue };
            if let Some(means) = &means {
                feature.iter_mut().zip(&means[s]).for_each(|(value, mean)| *value -= mean);
            }
            let norm = feature.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
            feature.iter_mut().for_each(|value| *value /= norm);
        }
    }
    Ok(())
}

/// Rows of features as a tensor (n, S, C_text), zero where a structure is not mentioned, and which are.
pub fn stack_features(rows: &[&Vec<Option<Vec<f32>>>], width: usize) -> Result<(Tensor, Vec<Vec<bool>>)> {
    let structures = rows.first().map_or(0, |row| row.len());
    let mut values = vec![0f32; rows.len() * structures * width];
    for (index, feature) in rows.iter().flat_map(|row| row.iter()).enumerate() {
        if let Some(feature) = feature {
            values[index * width..(index + 1) * width].copy_from_slice(feature);
        }
    }
    let present = rows.iter().map(|row| row.iter().map(Option::is_some).collect()).collect();
    Ok((Tensor::from_vec(values, (rows.len(), structures, width), &Device::Cpu)?, present))
}

fn encode((config, device): (&EncoderConfig, DeviceName), texts: &[String], cache: Option<&Path>) -> Result<(Vec<Vec<f32>>, usize)> {
    let encoder = TextEncoder::new(config, &device.open()?)?;
    let width = encoder.width();
    let file = match (config, cache) {
        // hashed words cost less than reading a file
        (EncoderConfig::Bert { folder, .. }, Some(cache)) => Some(cache_file(config, folder, cache)?),
        _ => None,
    };
    let Some(file) = file else { return Ok((encoder.encode(texts)?, width)) };
    let mut known = read_cache(&file)?;
    let new: Vec<String> = texts.iter().filter(|text| !known.contains_key(&hash(text))).cloned().collect();
    if !new.is_empty() {
        let encoded = encoder.encode(&new)?;
        known.extend(new.iter().map(|text| hash(text)).zip(encoded));
        write_cache(&file, &known, width)?;
    }
    Ok((texts.iter().map(|text| known[&hash(text)].clone()).collect(), width))
}

/// `text/ENCODER.safetensors` in the cache, where ENCODER is a hash of the encoder's configuration and its folder's `config.json` and sizes.
fn cache_file(config: &EncoderConfig, folder: &Path, cache: &Path) -> Result<PathBuf> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{config:?}"));
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name().into_iter().flatten().filter(|entry| entry.file_type().is_file()) {
        hasher.update(entry.file_name().as_encoded_bytes());
        hasher.update(weights::sha256(entry.path())?);
    }
    let name: String = hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = cache.join("text");
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
    Ok(folder.join(format!("{name}.safetensors")))
}

type Hash = [u8; 32];

fn hash(text: &str) -> Hash {
    Sha256::digest(text.as_bytes()).into()
}

fn read_cache(file: &Path) -> Result<HashMap<Hash, Vec<f32>>> {
    if !file.is_file() {
        return Ok(HashMap::new());
    }
    let mut tensors = weights::open(file)?;
    let mut take = |name: &str| tensors.remove(name).ok_or_else(|| Error::file(file, format!("holds no tensor `{name}`")));
    let (hashes, features): (Vec<Vec<u8>>, Vec<Vec<f32>>) = (take("hashes")?.to_vec2()?, take("features")?.to_vec2()?);
    let whole = hashes.into_iter().zip(features).filter_map(|(hash, feature)| Some((hash.try_into().ok()?, feature)));
    Ok(whole.collect())
}

fn write_cache(file: &Path, known: &HashMap<Hash, Vec<f32>>, width: usize) -> Result<()> {
    let sorted: BTreeMap<&Hash, &Vec<f32>> = known.iter().collect();
    let hashes: Vec<u8> = sorted.keys().flat_map(|hash| hash.iter().copied()).collect();
    let features: Vec<f32> = sorted.values().flat_map(|feature| feature.iter().copied()).collect();
    let tensors = BTreeMap::from([
        ("hashes".to_string(), Tensor::from_vec(hashes, (sorted.len(), 32), &Device::Cpu)?),
        ("features".to_string(), Tensor::from_vec(features, (sorted.len(), width), &Device::Cpu)?),
    ]);
    weights::write(file, &tensors, &HashMap::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_made_texts_are_taken_and_other_reports_are_split_by_the_rules() {
        let config = Config::load("phantom", &[]).unwrap();
        let study = |report: &str, texts: Option<BTreeMap<String, String>>| CachedStudy {
            name: String::new(),
            patient: String::new(),
            split: crate::data::Split::Train,
            report: report.to_string(),
            labels: None,
            structure_texts: texts,
        };
        let ruled = study("Heart size is normal.", None);
        let ready = study("Both lungs are clear.", Some(BTreeMap::from([("heart".to_string(), "Heart size is normal.".to_string())])));
        let (features, _) = encode_reports(&config, &[&ruled, &ready], None).unwrap();
        assert_eq!(features[0], features[1]);
        assert_eq!(features[0].iter().flatten().count(), 1);
    }

    #[test]
    fn features_are_centred_a_structure_and_an_unmentioned_one_stays_absent() {
        let mut features: Features = vec![vec![Some(vec![2.0, 1.0]), None], vec![Some(vec![4.0, 1.0]), Some(vec![0.0, 3.0])]];
        let means = structure_means(&features, 2).unwrap();
        assert_eq!(means.to_vec2::<f32>().unwrap(), [[3.0, 1.0], [0.0, 3.0]]);
        centre(&mut features, Some(&means)).unwrap();
        assert_eq!(features[0], [Some(vec![-1.0, 0.0]), None]);
        assert_eq!(features[1][0], Some(vec![1.0, 0.0]));
        let (tensor, present) = stack_features(&[&features[0]], 2).unwrap();
        assert_eq!(tensor.to_vec3::<f32>().unwrap(), [[[-1.0, 0.0], [0.0, 0.0]]]);
        assert_eq!(present, [[true, false]]);
    }
}
