//! The bytes of a model file: mapped, or, without the feature `mmap`, read whole when it is opened.

use std::fs::File;
use std::io;
use std::ops::Deref;

/// All bytes of a file. They begin on a boundary of 8 bytes at least.
pub struct FileBytes {
    #[cfg(feature = "mmap")]
    map: memmap2::Mmap,
    /// Words, for the boundary; the file's last bytes may fill one in part.
    #[cfg(not(feature = "mmap"))]
    words: Vec<u64>,
    #[cfg(not(feature = "mmap"))]
    bytes: usize,
}

#[cfg(feature = "mmap")]
impl FileBytes {
    pub fn open(file: &File) -> io::Result<FileBytes> {
        // SAFETY: the mapping is read-only and private to this value. As with every mapped model file, it is sound
        // only while nobody shortens or rewrites the file under us.
        Ok(FileBytes { map: unsafe { memmap2::Mmap::map(file) }? })
    }

    /// Gives back the pages that are resident; they are read again when they are asked for.
    pub fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the mapping is of a file and read-only, so a page that is given back comes again with the same bytes.
        let _ = unsafe { self.map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

#[cfg(not(feature = "mmap"))]
impl FileBytes {
    pub fn open(mut file: &File) -> io::Result<FileBytes> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut words = Vec::new();
        words.try_reserve_exact(bytes.div_ceil(8)).map_err(|_| io::ErrorKind::OutOfMemory)?;
        words.resize(bytes.div_ceil(8), 0);
        io::Read::read_exact(&mut file, &mut bytemuck::cast_slice_mut(&mut words)[..bytes])?;
        Ok(FileBytes { words, bytes })
    }

    /// Nothing can be given back: the bytes are in no other place.
    pub fn release(&self) {}
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        #[cfg(feature = "mmap")]
        return &self.map;
        #[cfg(not(feature = "mmap"))]
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}
