//! Writes crds/yaml from the types.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/yaml");
    std::fs::create_dir_all(folder)?;
    for (name, yaml) in podlane_crds::crd_files()? {
        std::fs::write(format!("{folder}/{name}"), yaml)?;
    }
    Ok(())
}
