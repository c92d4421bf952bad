//! What is mounted on this machine, and taking it out of the tree.

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Mounts of one directory upon each other that are undone.
const LAYERS_MAX: u32 = 8;

/// Every mount point, without asking what is mounted there.
///
/// # Errors
/// When the kernel does not tell.
pub fn points() -> io::Result<Vec<PathBuf>> {
    Ok(read(&std::fs::read_to_string("/proc/self/mountinfo")?).collect())
}

/// The fifth field of each line; blanks and backslashes stand there as `\\040` (proc(5)).
fn read(mountinfo: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| {
        let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
            .iter()
            .fold(field.to_owned(), |text, (code, char)| text.replace(code, char));
        PathBuf::from(plain)
    })
}

/// `path` without links but for its last name, which may be that of a dead mount.
fn plain(path: &Path) -> PathBuf {
    let parts = path.parent().zip(path.file_name());
    let whole = parts.and_then(|(above, name)| Some(above.canonicalize().ok()?.join(name)));
    whole.unwrap_or_else(|| path.to_owned())
}

/// Whether something is mounted on exactly `at`.
///
/// # Errors
/// When the kernel does not tell.
pub fn is_mounted(at: &Path) -> io::Result<bool> {
    let at = plain(at);
    Ok(points()?.contains(&at))
}

/// Takes what is mounted on `at` out of the tree, dead or alive, whoever still has files of it open.
///
/// # Errors
/// When the kernel refuses.
pub fn detach(at: &Path) -> io::Result<()> {
    for _ in 0..LAYERS_MAX {
        unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        if !is_mounted(at)? {
            return Ok(());
        }
    }
    Err(io::Error::other(format!("{LAYERS_MAX} mounts lie upon each other on {}", at.display())))
}

/// Detaches every mount on or below `directory`, so that removing it removes nothing of them.
///
/// # Errors
/// When one stays.
pub fn detach_below(directory: &Path) -> io::Result<()> {
    let directory = plain(directory);
    let mut below: Vec<PathBuf> =
        points()?.into_iter().filter(|point| point.starts_with(&directory)).collect();
    // What lies deepest first.
    below.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    below.dedup();
    below.iter().try_for_each(|point| detach(point))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let mountinfo = "36 35 98:0 /mnt1 /mnt/two\\040words rw,noatime master:1 - ext3 /dev/root rw\n\
                         25 1 0:22 / / rw - overlay overlay rw\n";
        let points: Vec<PathBuf> = read(mountinfo).collect();
        assert_eq!(points, [PathBuf::from("/mnt/two words"), PathBuf::from("/")]);
    }

    #[test]
    fn what_is_no_mount_is_told_from_one() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_mounted(directory.path()).unwrap());
        assert!(is_mounted(Path::new("/proc")).unwrap());
        detach_below(directory.path()).unwrap();
    }
}
