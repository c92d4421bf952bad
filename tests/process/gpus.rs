//! Stand-in GPUs for an agent: a device node, a driver library that does what a script says, and a kernel's log.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::dev_fleet::binary;

/// Eight GPUs below one directory.
#[derive(Debug)]
pub struct StandInGpus {
    dir: PathBuf,
    kmsg: File,
    kmsg_seq: u64,
}

impl StandInGpus {
    /// Healthy ones.
    ///
    /// # Errors
    /// When the stand-in for NVML was not built, or `dir` cannot be written.
    pub fn new(dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir.join("root/dev"))?;
        std::fs::write(dir.join("root/dev/nvidia0"), "")?;
        let library = binary("libnvml_mock.so").context("the stand-in for NVML")?;
        std::os::unix::fs::symlink(library, dir.join("libnvidia-ml.so.1"))?;
        nix::unistd::mkfifo(&dir.join("kmsg"), nix::sys::stat::Mode::S_IRWXU)?;
        // Both ends: with a writer that stays the agent's read never comes to an end of file.
        let kmsg = File::options().read(true).write(true).open(dir.join("kmsg"))?;
        let gpus = Self { dir: dir.to_owned(), kmsg, kmsg_seq: 1 };
        gpus.script(&json!({}))?;
        Ok(gpus)
    }

    /// For the environment of an agent.
    #[must_use]
    pub fn environment(&self) -> Vec<(String, String)> {
        [
            ("CIC_GPU_ROOT", "root"),
            ("CIC_GPU_KMSG", "kmsg"),
            ("CIC_NVML_LIBRARY", "libnvidia-ml.so.1"),
            ("CIC_NVML_SCRIPT", "script.json"),
        ]
        .map(|(key, name)| (key.to_owned(), self.dir.join(name).display().to_string()))
        .into()
    }

    /// What the driver does from now on; keys as in `tests/nvml/script.rs`. Returns the moment it was told.
    ///
    /// # Errors
    /// When the script cannot be written.
    pub fn script(&self, script: &Value) -> anyhow::Result<Instant> {
        let path = self.dir.join("script.json");
        std::fs::write(path.with_extension("tmp"), script.to_string())?;
        let at = Instant::now();
        std::fs::rename(path.with_extension("tmp"), path)?;
        Ok(at)
    }

    /// Writes a line to what the agent takes for the kernel's log. Returns the moment before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kernel_says(&mut self, text: &str) -> anyhow::Result<Instant> {
        self.kmsg_seq += 1;
        let record = format!("4,{},{},-;{text}\n", self.kmsg_seq, self.kmsg_seq * 1000);
        let at = Instant::now();
        self.kmsg.write_all(record.as_bytes())?;
        Ok(at)
    }
}
