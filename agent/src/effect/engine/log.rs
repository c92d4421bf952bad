//! The engine's output: a file, because a pipe would end with the agent and take the engine along.

use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::fs::{self, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Logs of earlier engines that are kept beside the current one.
const KEPT: u32 = 3;

/// A log beyond this is cut to its tail. vLLM writes about 1 MiB a day; only a flood gets here.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// What a cut leaves in `engine.log.1`.
const CUT_BYTES_KEPT: u64 = 1 << 20;

/// Read from the end for a tail: two hundred lines of the longest tracebacks.
const TAIL_BYTES: u64 = 256 << 10;

/// Lines kept of an exit, and the longest of them. The cause of a failed vLLM stands up to 120 lines above the last.
const TAIL_LINES: usize = 200;
const TAIL_LINE_CHARS: usize = 400;

/// An exit is reported without a tail rather than late.
const TAIL_DEADLINE: Duration = Duration::from_secs(2);

/// Moves the logs of earlier engines on by one and opens a new one for appending.
pub(super) async fn open_new(path: &Path) -> io::Result<std::fs::File> {
    rotate(path).await?;
    Ok(OpenOptions::new().create(true).append(true).open(path).await?.into_std().await)
}

/// Cuts a log that has grown too long. The engine appends, so that it goes on at the new end. Returns the bytes cut off.
pub(super) async fn bound(path: &Path) -> io::Result<u64> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || cut(&path)).await.map_err(io::Error::other)?
}

/// The kernel copies: buffers of megabytes that are filled on one thread and freed on another stay with the allocator.
fn cut(path: &Path) -> io::Result<u64> {
    let mut log = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = log.metadata()?.len();
    if length <= LOG_BYTES_MAX {
        return Ok(0);
    }
    log.seek(SeekFrom::Start(length - CUT_BYTES_KEPT))?;
    let mut kept = std::fs::File::create(numbered(path, 1))?;
    io::copy(&mut (&log).take(CUT_BYTES_KEPT), &mut kept)?;
    log.set_len(0)?;
    Ok(length)
}

/// Bytes in the log now; 0 when there is none.
pub(super) async fn length(path: &Path) -> u64 {
    fs::metadata(path).await.map_or(0, |found| found.len())
}

/// The last lines, for people; empty when there is no log or the disk does not answer.
pub(super) async fn tail(path: &Path) -> Vec<String> {
    let bytes = match tokio::time::timeout(TAIL_DEADLINE, end_of(path, TAIL_BYTES)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) | Err(_) => return Vec::new(),
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let plain = |line: &&str| line.chars().filter(|c| !c.is_control()).take(TAIL_LINE_CHARS).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(plain).collect()
}

async fn rotate(path: &Path) -> io::Result<()> {
    for number in (0..KEPT).rev() {
        let from = if number == 0 { path.to_owned() } else { numbered(path, number) };
        match fs::rename(from, numbered(path, number + 1)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

async fn end_of(path: &Path, bytes: u64) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes))).await?;
    let mut end = Vec::new();
    file.take(bytes).read_to_end(&mut end).await?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn three_earlier_logs_are_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("engine.log");
        for run in 1..=6 {
            writeln!(open_new(&path).await.unwrap(), "run {run}").unwrap();
        }
        assert_eq!(tail(&path).await, ["run 6"]);
        assert_eq!(tail(&numbered(&path, 3)).await, ["run 3"]);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 4);
    }

    #[tokio::test]
    async fn a_tail_is_the_last_lines_without_control_characters() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("engine.log");
        let mut file = open_new(&path).await.unwrap();
        for line in 1..=230 {
            writeln!(file, "\u{1b}line {line}\r").unwrap();
        }
        let tail = tail(&path).await;
        assert_eq!(tail.len(), TAIL_LINES);
        assert_eq!(tail.last().map(String::as_str), Some("line 230"));
    }

    #[tokio::test]
    async fn a_flood_is_cut_while_the_engine_goes_on_writing() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("engine.log");
        let mut file = open_new(&path).await.unwrap();
        file.set_len(LOG_BYTES_MAX + 1).unwrap();
        assert_eq!(bound(&path).await.unwrap(), LOG_BYTES_MAX + 1);
        writeln!(file, "after").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 6);
        assert_eq!(std::fs::metadata(numbered(&path, 1)).unwrap().len(), CUT_BYTES_KEPT);
    }
}
