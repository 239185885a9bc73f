//! Images that come from no registry: the lab's own, put together here.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// busybox and curl: what holds a pod's namespaces, what serves and what asks in the lab's workloads.
pub const LAB_IMAGE: &str = "docker.io/podlane/lab:1";

/// Makes the archive of `LAB_IMAGE` in a directory, out of this machine's static busybox and its curl; its path. (That busybox
/// itself resolves no names where its C library's modules are not.)
pub fn lab_image(directory: &Path) -> Result<PathBuf> {
    let place = directory.join("lab-image");
    let files = place.join("files");
    let programs = files.join("bin");
    for folder in ["bin", "etc", "tmp", "www"] {
        let folder = files.join(folder);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let busybox = programs.join("busybox");
    fs::copy(busybox_path()?, &busybox).context("cannot copy busybox")?;
    for applet in run(Command::new(&busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", programs.join(applet)).with_context(|| format!("cannot link {applet}"))?;
        }
    }
    copy_with_libraries(Path::new("/usr/bin/curl"), &files, "bin/curl")?;
    // Holding a pod's namespaces needs nothing but to be there.
    let archive = directory.join("lab-image.tar");
    let settings = json!({"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "2147483647"]});
    pack(&place, &files, LAB_IMAGE, &settings, &archive)?;
    Ok(archive)
}

/// Makes the archive of an image in a directory, out of a program that this machine runs, stripped, with the libraries that it is linked
/// to; its path.
pub fn of_program(directory: &Path, name: &str, program: &Path) -> Result<PathBuf> {
    let file = program.file_name().context("a program without a name")?;
    let place = directory.join("images").join(file);
    let files = place.join("files");
    fs::create_dir_all(&files).with_context(|| format!("cannot make {}", files.display()))?;
    run(Command::new("strip")
        .arg("--strip-all")
        .arg("-o")
        .args([&files.join(file), program]))?;
    copy_libraries(program, &files)?;
    let archive = place.with_extension("tar");
    let entry = Path::new("/").join(file).display().to_string();
    pack(&place, &files, name, &json!({"Entrypoint": [entry]}), &archive)?;
    Ok(archive)
}

/// Copies a program into an image's files, and the libraries that it is linked to.
fn copy_with_libraries(program: &Path, files: &Path, to: &str) -> Result<()> {
    fs::copy(program, files.join(to)).with_context(|| format!("cannot copy {}", program.display()))?;
    copy_libraries(program, files)
}

fn copy_libraries(program: &Path, files: &Path) -> Result<()> {
    for library in libraries(&run(Command::new("ldd").arg(program))?) {
        let copy = files.join(library.strip_prefix("/").unwrap_or(&library));
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::copy(&library, &copy).with_context(|| format!("cannot copy {}", library.display()))?;
    }
    Ok(())
}

/// The files that `ldd` names: `NAME => /PATH (0x…)`, and the loader as `/PATH (0x…)`.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// The static busybox of this machine.
pub fn busybox_path() -> Result<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .context("busybox is not installed (package busybox-static)")
}

/// Packs a folder as an image of one layer, in the form that `docker save` writes.
fn pack(place: &Path, files: &Path, name: &str, settings: &Value, archive: &Path) -> Result<()> {
    let layer = place.join("layer.tar");
    run(Command::new("tar")
        .args([
            "--numeric-owner",
            "--owner=0",
            "--group=0",
            "--mtime=@0",
            "--sort=name",
        ])
        .arg("-cf")
        .args([&layer])
        .arg("-C")
        .args([files])
        .arg("."))?;
    let sum = run(Command::new("sha256sum").arg(&layer))?;
    let sum = sum.split(' ').next().context("sha256sum said nothing")?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let configuration = json!({
        "architecture": architecture,
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    for (file, content) in [("config.json", configuration), ("manifest.json", manifest)] {
        fs::write(place.join(file), content.to_string()).with_context(|| format!("cannot write {file}"))?;
    }
    run(Command::new("tar")
        .arg("-cf")
        .args([archive])
        .arg("-C")
        .args([place])
        .args(["config.json", "manifest.json", "layer.tar"]))
    .map(drop)
}

fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_file() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f0)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f1)\n\t/lib64/ld.so.2 (0x00007f2)\n";
        let expected: Vec<PathBuf> = ["/lib/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from).to_vec();
        assert_eq!(libraries(ldd), expected);
        assert_eq!(libraries("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
