//! The configuration as a file, and files that it names. They are read with it, so that a wrong one changes nothing.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::units::size;

/// No configuration has a longer text: 65,534 servers of 150 bytes each have 10 MB.
const MOST_BYTES: u64 = 16 << 20;

/// Where relative names lead to.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::config) struct Files<'a> {
    /// That of the configuration file; none: the configuration is no file, and names are taken as they are.
    pub directory: Option<&'a Path>,
}

impl Files<'_> {
    /// The whole of a file of so many bytes at most.
    ///
    /// # Errors
    /// Message and help.
    pub fn read(&self, name: &str, most: u64) -> Result<Vec<u8>, (String, String)> {
        let path = self.directory.map_or_else(|| PathBuf::from(name), |directory| directory.join(name));
        let failed = |error: io::Error| {
            let help = match error.kind() {
                io::ErrorKind::NotFound => {
                    "give its path from the root, or from the directory of the configuration file"
                }
                io::ErrorKind::PermissionDenied => "make it readable for the user that runs this",
                _ => "check the path",
            };
            (format!("cannot read {}: {error}", path.display()), help.to_owned())
        };
        // A pipe or a device may have no end, or never begin.
        if !fs::metadata(&path).map_err(failed)?.is_file() {
            return Err((format!("{} is no plain file", path.display()), "name one".to_owned()));
        }
        read_at_most(&path, most).map_err(failed)?.ok_or_else(|| {
            let message = format!("{} has more than {}", path.display(), size(most));
            (message, "make it smaller".to_owned())
        })
    }
}

/// Reads a configuration from a file or a pipe. What is larger is no configuration, and a device may have no end.
///
/// # Errors
/// If it cannot be read, is no text, or is too long.
pub(in crate::config) fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_at_most(path, MOST_BYTES)?
        .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {}", size(MOST_BYTES))))?;
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
}

/// None: it has more bytes.
fn read_at_most(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
