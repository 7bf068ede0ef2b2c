//! The memory limit of a container: `memory.max` of cgroup v2, `memory.limit_in_bytes` of v1.
//!
//! A process is in a cgroup, and the limits of that cgroup and of each one above it hold together.
//! So the smallest limit counts, along the path that `/proc/self/cgroup` names, up to the root.
//! Inside a container that path is often one of the host's, and its files cannot be seen. The
//! container's own files are then at the root of the mount.

use std::fs::read_to_string;
use std::path::Path;

/// A limit of v1 from this value on means that there is no limit: the kernel rounds the largest
/// signed number down to pages.
const NO_LIMIT: u64 = i64::MAX as u64 & !0xffff;

/// The memory limit of this process's cgroups, in bytes.
pub(crate) fn memory_limit() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    limit_in(Path::new("/sys/fs/cgroup"), &groups)
}

/// The same, with the mount point and the contents of `/proc/self/cgroup` as arguments.
fn limit_in(root: &Path, groups: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in groups.lines() {
        // A line is `number:controllers:path`; in v2 the controllers are empty.
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (top, file) = if controllers.is_empty() {
            (root.to_path_buf(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            continue;
        };
        let path = Path::new(path.trim_start_matches('/'));
        for group in path.ancestors() {
            limits.extend(limit_of(&top.join(group).join(file)));
        }
    }
    limits.into_iter().min()
}

/// The limit in a file. `None`: there is no such file, or it says `max`.
fn limit_of(file: &Path) -> Option<u64> {
    let text = read_to_string(file).ok()?;
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::path::PathBuf;

    /// A new directory with these files.
    fn root(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("urge-{name}-{}", std::process::id()));
        for (file, text) in files {
            let file = root.join(file);
            create_dir_all(file.parent().unwrap()).unwrap();
            write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn the_smallest_limit_on_the_way_to_the_root_counts() {
        let files = [
            ("memory.max", "max\n"),
            ("pod/memory.max", "268435456\n"),
            ("pod/app/memory.max", "536870912\n"),
            ("pod/other/memory.max", "4096\n"),
        ];
        let root = root("v2", &files);
        assert_eq!(limit_in(&root, "0::/pod/app\n"), Some(256 << 20));
        assert_eq!(limit_in(&root, "0::/pod/app/leaf\n"), Some(256 << 20));
        assert_eq!(limit_in(&root, "0::/\n"), None);
        assert_eq!(limit_in(&root, ""), None);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_container_that_does_not_see_its_path_has_the_limit_at_the_root() {
        let root = root("inside", &[("memory.max", "1073741824")]);
        let groups = "0::/kubepods/burstable/pod1/app\n";
        assert_eq!(limit_in(&root, groups), Some(1 << 30));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_first_version_has_a_hierarchy_of_its_own_and_a_number_for_no_limit() {
        let files = [
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory/docker/app/memory.limit_in_bytes", "134217728\n"),
            ("memory.max", "1\n"),
        ];
        let root = root("v1", &files);
        let groups = "12:cpu,cpuacct:/docker/app\n5:memory:/docker/app\n1:name=systemd:/docker\n";
        assert_eq!(limit_in(&root, groups), Some(128 << 20));
        assert_eq!(limit_in(&root, "5:memory:/\n"), None);
        std::fs::remove_dir_all(root).unwrap();
    }
}
