//! What a judgement needs of a model's directory: its config.json, and the headers of its weights.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::config::{Architecture, CONFIG_BYTES_MAX};
use super::headers;
use super::weights::Weights;
use crate::model::header::{LENGTH_BYTES, header_length};
use crate::model::index::{INDEX_BYTES_MAX, INDEX_NAME};
use crate::model::{Header, Index};

/// Of a model in one file.
const SINGLE_NAME: &str = "model.safetensors";

/// What the config.json at `config` says.
///
/// # Errors
/// Names the file, and what is wrong with it.
pub fn architecture(config: &Path) -> Result<Architecture, String> {
    let text = read_small(config, CONFIG_BYTES_MAX).map_err(|error| unreadable(config, &error))?;
    Architecture::parse(&text).map_err(|fault| format!("{} {fault}", config.display()))
}

/// The weights by the headers of their files; `None` where there are no files.
///
/// # Errors
/// Why the files that are there do not say.
pub fn found(directory: &Path, architecture: &Architecture) -> Result<Option<Weights>, String> {
    let Some(shards) = shards(directory)? else { return Ok(None) };
    let missing = shards.iter().filter(|shard| !directory.join(shard).is_file()).count();
    if missing > 0 {
        return Err(format!("{missing} of {} files of weights are not there", shards.len()));
    }
    let read = |shard: &String| {
        let path = directory.join(shard);
        header(&path).map_err(|why| format!("{}: {why}", path.display()))
    };
    let headers = shards.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let tensors = headers.iter().flat_map(|header| &header.tensors);
    Ok(Some(headers::weights(architecture, tensors.map(|(name, tensor)| (name.as_str(), tensor)))))
}

/// The files of weights that an engine loads from `directory`; `None` where there are none.
///
/// # Errors
/// When the index that is there does not say.
pub fn shards(directory: &Path) -> Result<Option<Vec<String>>, String> {
    let path = directory.join(INDEX_NAME);
    if path.is_file() {
        let text = read_small(&path, INDEX_BYTES_MAX).map_err(|error| unreadable(&path, &error))?;
        let index = Index::parse(&text).map_err(|fault| format!("{} {fault}", path.display()))?;
        return Ok(Some(index.shards().into_iter().map(str::to_owned).collect()));
    }
    Ok(directory.join(SINGLE_NAME).is_file().then(|| vec![SINGLE_NAME.to_owned()]))
}

/// The header of the safetensors file at `path`, whose length it has to account for.
///
/// # Errors
/// What is wrong with it.
pub fn header(path: &Path) -> Result<Header, String> {
    let read = |file: &mut File, bytes: &mut [u8]| file.read_exact(bytes).map_err(|error| error.to_string());
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut first = [0; LENGTH_BYTES];
    if length >= LENGTH_BYTES as u64 {
        read(&mut file, &mut first)?;
    }
    let bytes = header_length(first, length).map_err(|fault| fault.to_string())?;
    let mut json = vec![0; usize::try_from(bytes).map_err(|error| error.to_string())?];
    read(&mut file, &mut json)?;
    Header::parse(&json, length).map_err(|fault| fault.to_string())
}

/// A file that ought to be small.
fn read_small(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {error}", path.display())
}
