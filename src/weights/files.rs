//! Opening and writing tensor files: safetensors (whole, sharded) and PyTorch's zip archives, never running pickled code.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, pickle};
use ctscribe_ops::transfers;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Wrappers that training frameworks put before every name (peers.md a.9).
const WRAPPERS: [&str; 2] = ["module.", "trained_model."];
/// Keys under which a checkpoint may nest its tensors.
const NESTS: [Option<&str>; 4] = [None, Some("model"), Some("state_dict"), Some("model_state_dict")];

/// All tensors of a checkpoint by name: `.safetensors`, a folder of them (with or without an index), or a PyTorch archive
/// (`.pt`, `.pth`, `.bin`). `module.` and `trained_model.` before names are stripped.
pub fn open(path: &Path) -> Result<HashMap<String, Tensor>> {
    if path.is_dir() {
        return open_folder(path);
    }
    if !path.exists() {
        return Err(Error::file(path, "no such file"));
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension {
        "safetensors" => open_safetensors(path),
        "pt" | "pth" | "bin" => open_archive(path),
        "json" => open_folder(path.parent().unwrap_or(Path::new("."))),
        _ => Err(Error::file(path, "not a checkpoint: expected .safetensors, .pt, .pth, .bin or a folder of .safetensors")),
    }
}

/// The tensors whose name starts with `prefix`, without it; the whole map where no name does.
pub fn part(tensors: HashMap<String, Tensor>, prefix: &str) -> HashMap<String, Tensor> {
    if !tensors.keys().any(|name| name.starts_with(prefix)) {
        return tensors;
    }
    let inside = tensors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_string(), tensor)));
    inside.collect()
}

fn open_folder(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
    files.sort();
    if files.is_empty() {
        return Err(Error::file(folder, "holds no .safetensors file"));
    }
    let mut tensors = HashMap::new();
    for file in files {
        tensors.extend(open_safetensors(&file)?);
    }
    Ok(tensors)
}

fn open_safetensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    let file =
        safetensors::SafeTensors::deserialize(&bytes).map_err(|e| Error::file(path, format!("not a whole safetensors file: {e}")))?;
    let read = |(name, view): (String, TensorView)| {
        let tensor = from_view(&view).map_err(|e| Error::Tensor {
            source_name: path.display().to_string(),
            tensor: name.clone(),
            what: e.to_string(),
        })?;
        Ok((unwrapped(&name), tensor))
    };
    file.tensors().into_iter().map(read).collect()
}

/// A tensor of a view; one without elements becomes an empty tensor of its shape.
fn from_view(view: &TensorView) -> candle_core::Result<Tensor> {
    let dtype = match view.dtype() {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::U8 | Dtype::BOOL => DType::U8,
        other => candle_core::bail!("type {other:?} is not read"),
    };
    if view.data().is_empty() {
        return Tensor::zeros(view.shape(), dtype, &Device::Cpu);
    }
    Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)
}

fn open_archive(path: &Path) -> Result<HashMap<String, Tensor>> {
    Ok(archive_tensors(path)?.into_iter().map(|(name, tensor)| (unwrapped(&name), tensor)).collect())
}

/// The tensors of a PyTorch archive under the names that they have there. The pickle is read as data: nothing in it is called.
pub(super) fn archive_tensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let fault = |e: candle_core::Error| Error::file(path, format!("not a PyTorch archive of tensors: {e}"));
    for nest in NESTS {
        let infos = match pickle::read_pth_tensor_info(path, false, nest) {
            Ok(infos) => infos,
            Err(e) if nest.is_none() => return Err(fault(e)),
            Err(_) => continue,
        };
        if !infos.is_empty() {
            return read_archive(path, nest);
        }
    }
    Err(Error::file(path, "a PyTorch archive without tensors by name"))
}

fn read_archive(path: &Path, nest: Option<&str>) -> Result<HashMap<String, Tensor>> {
    let fault = |e: candle_core::Error| Error::file(path, format!("not a PyTorch archive of tensors: {e}"));
    let archive = pickle::PthTensors::new(path, nest).map_err(fault)?;
    let mut tensors = HashMap::new();
    for (name, info) in archive.tensor_infos() {
        let tensor = if info.layout.shape().elem_count() == 0 {
            Tensor::zeros(info.layout.shape(), info.dtype, &Device::Cpu)?
        } else {
            let what = |what: String| Error::Tensor { source_name: path.display().to_string(), tensor: name.clone(), what };
            archive.get(name).map_err(|e| what(e.to_string()))?.ok_or_else(|| what("listed but absent".to_string()))?
        };
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}

fn unwrapped(name: &str) -> String {
    let mut name = name;
    for wrapper in WRAPPERS {
        name = name.strip_prefix(wrapper).unwrap_or(name);
    }
    name.to_string()
}

/// Writes `tensors` and `metadata` to a safetensors file: aside, fsynced, renamed.
pub fn save(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &HashMap<String, String>) -> Result<()> {
    let aside = write_beside(path, tensors, metadata)?;
    aside.as_file().sync_all().map_err(|e| Error::io(path, e))?;
    aside.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// As [`save`] without the fsync: for files that can be made again (caches).
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &HashMap<String, String>) -> Result<()> {
    write_beside(path, tensors, metadata)?.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

fn write_beside(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &HashMap<String, String>) -> Result<tempfile::NamedTempFile> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let aside = beside(folder)?;
    let metadata = (!metadata.is_empty()).then(|| metadata.clone());
    let contiguous: Vec<(String, Tensor)> =
        tensors.iter().map(|(name, tensor)| Ok((name.clone(), transfers::to_host(tensor)?.contiguous()?))).collect::<Result<_>>()?;
    let views = contiguous.iter().map(|(name, tensor)| (name.as_str(), tensor));
    safetensors::serialize_to_file(views, metadata, aside.path()).map_err(|e| Error::file(path, e.to_string()))?;
    Ok(aside)
}

/// What the name of a file that will be renamed begins with, before [`ASIDE_RANDOM`] letters and digits.
const ASIDE: &str = ".tmp";
const ASIDE_RANDOM: usize = 6;

/// A file in `folder` that will be renamed, readable by whom the umask allows. It is locked while its process lives, by which
/// [`remove_leftovers`] knows it.
fn beside(folder: &Path) -> Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(ASIDE).rand_bytes(ASIDE_RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    loop {
        let file = builder.tempfile_in(folder).map_err(|e| Error::io(folder, e))?;
        if owned(file.as_file()).map_err(|e| Error::io(folder, e))? {
            return Ok(file);
        }
    }
}

/// Locks a new file; false where [`remove_leftovers`] came between its making and its lock.
#[cfg(unix)]
fn owned(file: &fs::File) -> io::Result<bool> {
    loop {
        match file.lock() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // a file system without locks: nothing is removed there either
            _ => return Ok(std::os::unix::fs::MetadataExt::nlink(&file.metadata()?) > 0),
        }
    }
}

/// Locks of other systems keep the file's other writers out.
#[cfg(not(unix))]
fn owned(_: &fs::File) -> io::Result<bool> {
    Ok(true)
}

/// Removes from `folder` the files that were to be renamed and whose process was killed before; how many. A file is left alone while its process lives:
/// that one holds its lock, which a process loses however it ends. Where the file system or the system has no such locks nothing is removed.
pub fn remove_leftovers(folder: &Path) -> Result<usize> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let aside = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file()) && is_aside(&entry.file_name().to_string_lossy());
    let removed = |entry: &fs::DirEntry| {
        // a lock that others respect on a network needs a file that is open for writing
        let file = fs::File::options().write(true).open(entry.path());
        // the lock is held while the file goes, so that its maker, if it has just come, sees it gone
        cfg!(unix) && file.is_ok_and(|file| file.try_lock().is_ok() && fs::remove_file(entry.path()).is_ok())
    };
    Ok(entries.flatten().filter(aside).filter(removed).count())
}

/// Whether a file's name is one that [`beside`] gives.
fn is_aside(name: &str) -> bool {
    name.strip_prefix(ASIDE).is_some_and(|random| random.len() == ASIDE_RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Writes `bytes` to `path`: aside, fsynced, renamed.
pub fn write_aside(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = beside(folder)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(|e| Error::io(path, e))?;
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// Copies those of `names` that `from` holds; their places.
pub fn copy_files(from: &Path, to: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(to).map_err(|e| Error::io(to, e))?;
    let mut copied = Vec::new();
    for name in names.iter().filter(|name| from.join(name).is_file()) {
        let bytes = fs::read(from.join(name)).map_err(|e| Error::io(from.join(name), e))?;
        write_aside(&to.join(name), &bytes)?;
        copied.push(to.join(name));
    }
    Ok(copied)
}

/// The metadata of a safetensors file.
pub fn metadata(path: &Path) -> Result<HashMap<String, String>> {
    let header = header(path)?;
    let entries = header.get("__metadata__").and_then(|value| value.as_object());
    let strings = entries.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string())));
    Ok(strings.collect())
}

/// The names of a safetensors file's tensors.
pub(super) fn tensor_names(path: &Path) -> Result<Vec<String>> {
    Ok(header(path)?.keys().filter(|name| *name != "__metadata__").cloned().collect())
}

fn header(path: &Path) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|e| Error::io(path, e))?;
    let mut header = vec![0; usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX).min(100_000_000)];
    file.read_exact(&mut header).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&header).map_err(|e| Error::file(path, format!("header: {e}")))
}

/// A file's SHA-256, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io(path, e))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_opened_with_its_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let tensors = BTreeMap::from([
            ("module.w".to_string(), Tensor::new(&[[1.0f32, 2.0]], &Device::Cpu).unwrap()),
            ("empty".to_string(), Tensor::zeros((2, 0, 3), DType::F32, &Device::Cpu).unwrap()),
        ]);
        save(&path, &tensors, &HashMap::from([("kind".to_string(), "test".to_string())])).unwrap();
        let back = open(&path).unwrap();
        assert_eq!(back["w"].to_vec2::<f32>().unwrap(), [[1.0, 2.0]]);
        assert_eq!(back["empty"].dims(), [2, 0, 3]);
        assert_eq!(metadata(&path).unwrap()["kind"], "test");
    }

    /// Not a test but the process that one kills: it makes a file aside in the folder of this variable, and waits.
    const HOLDS: &str = "CTSCRIBE_TEST_HOLDS_A_FILE_IN";

    #[test]
    fn holds_a_file() {
        let Some(folder) = std::env::var_os(HOLDS) else { return };
        let mut file = beside(Path::new(&folder)).unwrap();
        file.write_all(b"half").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[cfg(unix)]
    #[test]
    fn files_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let written = || {
            let entries = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap());
            entries.filter(|entry| entry.file_type().unwrap().is_file() && entry.metadata().unwrap().len() > 0).count()
        };
        let foreign = [".tmp", ".tmpnotes", ".tmpabc-12", "tmpabc123", "a.safetensors"];
        foreign.iter().for_each(|name| fs::write(folder.path().join(name), b"a user's").unwrap());
        fs::create_dir(folder.path().join(".tmpfolder")).unwrap();
        let own = beside(folder.path()).unwrap();
        let program = std::env::current_exe().unwrap();
        let mut command = std::process::Command::new(program);
        let mut other = command.args(["holds_a_file", "--nocapture"]).env(HOLDS, folder.path()).spawn().unwrap();
        let begun = std::time::Instant::now();
        // this one's own file is empty, the other's is written once it is locked
        while written() == foreign.len() {
            assert!(begun.elapsed().as_secs() < 30 && other.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 0);
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert!(own.path().exists());
        drop(own);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), foreign.len() + 1);
    }

    #[test]
    fn a_file_that_is_no_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.safetensors", "a.pt", "a.txt"] {
            let path = folder.path().join(name);
            fs::write(&path, b"not tensors").unwrap();
            let message = open(&path).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn a_part_is_selected_by_its_prefix_where_there_is_one() {
        let tensor = Tensor::new(&[0.0f32], &Device::Cpu).unwrap();
        let whole = HashMap::from([("visual_transformer.a".to_string(), tensor.clone()), ("temperature".to_string(), tensor.clone())]);
        assert_eq!(part(whole, "visual_transformer.").keys().collect::<Vec<_>>(), ["a"]);
        assert!(part(HashMap::from([("a".to_string(), tensor)]), "visual_transformer.").contains_key("a"));
    }
}
