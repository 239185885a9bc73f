//! The cluster's certificates: one authority that signs the API server and everybody who speaks to it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// The cluster's certificate authority, with the directory that it writes to.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    /// Makes an authority whose files are in `directory`.
    pub fn create(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("podlane-lab", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .self_signed(&key)
            .context("cannot sign the authority's certificate")?;
        let authority = Self {
            issuer: Issuer::new(params, key),
            directory: directory.to_owned(),
        };
        write(&authority.certificate(), &certificate.pem())?;
        Ok(authority)
    }

    /// The authority's own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// A certificate for a server with these names and addresses.
    pub fn server(&self, name: &str, alternatives: Vec<String>) -> Result<KeyFiles> {
        let mut params = CertificateParams::new(alternatives).context("a server's names")?;
        params.distinguished_name = named(name, None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(name, params)
    }

    /// A certificate that the API server takes for user `user` in group `group`.
    pub fn client(&self, file: &str, user: &str, group: &str) -> Result<KeyFiles> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(user, Some(group));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, params)
    }

    /// A key pair without a certificate; the "certificate" is the public key.
    pub fn key_pair(&self, file: &str) -> Result<KeyFiles> {
        let key = KeyPair::generate().context("cannot make a key")?;
        let files = KeyFiles {
            certificate: self.directory.join(format!("{file}.pub")),
            key: self.key_path(file),
        };
        write(&files.certificate, &key.public_key_pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    fn sign(&self, file: &str, mut params: CertificateParams) -> Result<KeyFiles> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().context("cannot make a key")?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("cannot sign {file}'s certificate"))?;
        let files = KeyFiles {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.key_path(file),
        };
        write(&files.certificate, &certificate.pem())?;
        write(&files.key, &key.serialize_pem())?;
        Ok(files)
    }

    fn key_path(&self, file: &str) -> PathBuf {
        self.directory.join(format!("{file}.key"))
    }
}

fn named(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

/// Writes a file that only its owner reads.
fn write(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
