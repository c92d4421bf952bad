//! What the Python environment of an engine holds, by looking at its files.

use std::path::{Path, PathBuf};

/// Load formats of vLLM 0.32 that take a package which vLLM does not bring along: the format, the module, and what pip
/// installs it by.
const FORMATS: [(&str, &str, &str); 5] = [
    ("runai_streamer", "runai_model_streamer", "vllm[runai]"),
    ("runai_streamer_sharded", "runai_model_streamer", "vllm[runai]"),
    ("tensorizer", "tensorizer", "vllm[tensorizer]"),
    ("fastsafetensors", "fastsafetensors", "vllm[fastsafetensors]"),
    ("instanttensor", "instanttensor", "instanttensor"),
];

/// Where vLLM names the formats that it knows, each as text in double quotes.
const REGISTRY: &str = "vllm/model_executor/model_loader/__init__.py";

/// The CUDA version that the program's torch was built for: `cuda: Optional[str] = '13.0'` in `torch/version.py`.
pub(super) async fn cuda_of(program: &Path) -> Option<String> {
    for packages in packages_of(program).await {
        if let Ok(text) = tokio::fs::read_to_string(packages.join("torch/version.py")).await {
            let line = text.lines().find(|line| line.starts_with("cuda"))?;
            return line.split('\'').nth(1).map(str::to_owned);
        }
    }
    None
}

/// Why the engine cannot load in the format that it is told to: it would find out after some twenty seconds, each time anew.
pub(super) async fn format_mistake(program: &Path, args: &[String]) -> Option<String> {
    let format = load_format(args)?;
    let all = packages_of(program).await;
    // An environment of another kind says nothing.
    let home = all.iter().find(|packages| packages.join("vllm").is_dir())?;
    let program = program.display();
    let Some((_, module, package)) = FORMATS.iter().find(|(name, ..)| *name == format) else {
        let known = tokio::fs::read_to_string(home.join(REGISTRY)).await.ok()?;
        // Those of older vLLMs are elsewhere.
        let is_registry = known.contains("\"auto\"");
        let is_known = !is_registry || known.contains(&format!("\"{format}\"")) || has_plugin(&all).await;
        return (!is_known)
            .then(|| format!("--load-format {format} is none that the vLLM of {program} knows"));
    };
    let is_there = all.iter().any(|packages| packages.join(module).exists());
    (!is_there).then(|| {
        format!(
            "--load-format {format} takes the Python package {module}, which the environment of {program} lacks: install it there \
             (pip install '{package}'), or leave the flag out"
        )
    })
}

/// Whether a package other than vLLM brings it something, which may be a format.
async fn has_plugin(all: &[PathBuf]) -> bool {
    for packages in all {
        let Ok(mut entries) = tokio::fs::read_dir(packages).await else { continue };
        while let Ok(Some(entry)) = entries.next_entry().await {
            let is_own = entry.file_name().to_string_lossy().starts_with("vllm-");
            let points = tokio::fs::read_to_string(entry.path().join("entry_points.txt")).await;
            if !is_own && points.is_ok_and(|text| text.contains("[vllm.")) {
                return true;
            }
        }
    }
    false
}

/// The last of several counts.
fn load_format(args: &[String]) -> Option<&str> {
    let mut found = None;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let (name, attached) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg.as_str(), None),
        };
        if name.replace('_', "-") == "--load-format" {
            found = attached.or_else(|| rest.next().map(String::as_str));
        }
    }
    found
}

/// The folders of packages of the environment that `program` lies in.
async fn packages_of(program: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(program) = tokio::fs::canonicalize(program).await else { return found };
    let Some(root) = program.parent().and_then(Path::parent) else { return found };
    let Ok(mut entries) = tokio::fs::read_dir(root.join("lib")).await else { return found };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let packages = entry.path().join("site-packages");
        if packages.is_dir() {
            found.push(packages);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_format_whose_package_is_not_installed_is_named_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("lib/python3.12/site-packages");
        std::fs::create_dir_all(root.path().join("bin")).unwrap();
        let program = root.path().join("bin/vllm");
        std::fs::write(&program, "").unwrap();
        let said = async |line: &str| {
            let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            format_mistake(&program, &args).await
        };
        assert_eq!(said("--load-format runai_streamer").await, None, "what is no environment of vLLM");
        std::fs::create_dir_all(packages.join("vllm")).unwrap();
        for line in ["--load-format runai_streamer", "--load_format=runai_streamer_sharded"] {
            let mistake = said(line).await.expect(line);
            assert!(mistake.contains("pip install 'vllm[runai]'"), "{mistake}");
        }
        for line in
            ["", "--load-format safetensors", "--load-format tensorizer --load-format auto", "--load-format"]
        {
            assert_eq!(said(line).await, None, "{line}");
        }
        std::fs::create_dir_all(packages.join("runai_model_streamer")).unwrap();
        assert_eq!(said("--load-format runai_streamer").await, None);

        let registry = packages.join(REGISTRY);
        std::fs::create_dir_all(registry.parent().unwrap()).unwrap();
        std::fs::write(&registry, "class LoadFormat: ...").unwrap();
        assert_eq!(said("--load-format magic").await, None);
        std::fs::write(&registry, "FORMATS = {\"auto\": Loader, \"pt\": Loader}").unwrap();
        assert_eq!(said("--load-format pt").await, None);
        let mistake = said("--load-format magic").await.unwrap();
        assert!(mistake.starts_with("--load-format magic is none that the vLLM of"), "{mistake}");
        for (name, points) in [("vllm-0.32.0.dist-info", true), ("magic-1.0.dist-info", false)] {
            std::fs::create_dir_all(packages.join(name)).unwrap();
            std::fs::write(packages.join(name).join("entry_points.txt"), "[vllm.general_plugins]\na = b:c\n")
                .unwrap();
            assert_eq!(said("--load-format magic").await.is_some(), points, "{name}");
        }
    }
}
