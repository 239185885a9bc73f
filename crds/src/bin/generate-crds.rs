//! Writes the definitions from the types: into crds/yaml, and into the Helm chart.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for folder in podlane_crds::CRD_FOLDERS {
        let folder = format!("{}/{folder}", env!("CARGO_MANIFEST_DIR"));
        std::fs::create_dir_all(&folder)?;
        for (name, yaml) in podlane_crds::crd_files()? {
            std::fs::write(format!("{folder}/{name}"), yaml)?;
        }
    }
    Ok(())
}
