//! Files of torch's, damaged files and changed programs.

use std::path::PathBuf;

use flate2::Crc;

use super::*;
use crate::cpu::philox::philox;
use crate::peft::files;

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickled").join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(file(name)).unwrap()
}

fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, HostTensor>> {
    read(Path::new("x.bin"), bytes)
}

#[test]
fn files_of_torch_have_the_tensors_of_their_safetensors() {
    for (name, twin) in [("plain", "plain"), ("protocol4", "plain"), ("state", "state")] {
        let found = tensors(&bytes(&format!("{name}.bin"))).unwrap();
        assert_eq!(found, files::read_file(&file(&format!("{twin}.safetensors"))).unwrap(), "{name}");
    }
    // The control: they are not the same file.
    assert_ne!(tensors(&bytes("plain.bin")).unwrap(), tensors(&bytes("state.bin")).unwrap());
}

#[test]
fn what_is_no_file_of_tensors_is_an_error_that_says_so() {
    let table = [("calls", "system, which is no tensor's"), ("ints", "LongStorage"), ("old", "before 1.6")];
    for (name, word) in table {
        let error = tensors(&bytes(&format!("{name}.bin"))).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("x.bin"), "{error}");
    }
    for (bytes, word) in [(&b""[..], "no archive"), (b"PK\x03\x04", "damaged archive"), (b"\x80\x02}.", "before 1.6")] {
        let error = tensors(bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

/// Every file that is cut short, and every byte changed: an error, or nothing that counts was changed.
#[test]
fn damage_is_seen() {
    for name in ["plain.bin", "state.bin", "protocol4.bin"] {
        let whole = bytes(name);
        let sound = tensors(&whole).unwrap();
        for cut in 0..whole.len() {
            assert!(tensors(&whole[..cut]).is_err(), "{name} cut at {cut}");
        }
        let mut refused = 0;
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut broken = whole.clone();
                broken[at] ^= change;
                match tensors(&broken) {
                    Ok(found) => assert_eq!(found, sound, "{name} at {at}"),
                    Err(_) => refused += 1,
                }
            }
        }
        assert!(refused > whole.len(), "{name}: {refused} of {}", 3 * whole.len());
    }
}

/// An archive of a program and the values of one storage.
fn archive(program: &[u8]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("a/data.pkl", program), ("a/data/0", &[1; 48][..]), ("a/data/1", &[2; 48][..])] {
        let mut crc = Crc::new();
        crc.update(data);
        let [crc, len, at] = [crc.sum(), data.len() as u32, bytes.len() as u32].map(u32::to_le_bytes);
        let title = (name.len() as u16).to_le_bytes();
        let common = [&[0; 4][..], &[0; 4], &crc, &len, &len, &title, &[0; 2]].concat();
        bytes.extend([MAGIC, &[20, 0], &common, name.as_bytes(), data].concat());
        directory.extend([&b"PK\x01\x02"[..], &[0; 2], &[20, 0], &common, &[0; 10], &at, name.as_bytes()].concat());
    }
    let [start, len] = [bytes.len() as u32, directory.len() as u32].map(u32::to_le_bytes);
    bytes.extend(directory);
    bytes.extend([&b"PK\x05\x06"[..], &[0; 4], &[3, 0, 3, 0], &len, &start, &[0; 2]].concat());
    bytes
}

/// The program of a file of torch's.
fn program(name: &str) -> Vec<u8> {
    let whole = bytes(name);
    let zip = Zip::open(&whole).unwrap();
    let entry = zip.names().find(|name| name.ends_with("data.pkl")).unwrap();
    zip.read(entry).unwrap().to_vec()
}

/// Programs that are changed, with archives that are sound around them: tensors within the file's own values, or an error.
#[test]
fn changed_programs_do_no_harm() {
    let (mut read, mut refused) = (0, 0);
    for name in ["plain.bin", "state.bin", "protocol4.bin", "calls.bin"] {
        let whole = program(name);
        let random = |i: usize, k: u32| philox([i as u32, k, 0, 0], [7, 7]);
        for at in 0..whole.len() {
            for k in 0..24 {
                let mut changed = whole.clone();
                let [value, other, place, _] = random(at, k);
                changed[at] = value as u8;
                if k % 3 == 1 {
                    let place = place as usize % whole.len();
                    changed[place] = other as u8;
                } else if k % 3 == 2 {
                    changed.truncate(at);
                    changed.extend_from_slice(&whole[place as usize % whole.len()..]);
                }
                let archive = archive(&changed);
                match tensors(&archive) {
                    Ok(found) => {
                        let values: usize = found.values().map(|t| t.data.len()).sum();
                        assert!(values <= 4 * archive.len());
                        read += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(read > 100 && refused > 10_000, "{read} read, {refused} refused");
}

#[test]
fn programs_that_grow_are_stopped() {
    let deep = [b")".to_vec(), b"\x85".repeat(1_000_000), b".".to_vec()].concat();
    let lists = [b"]".repeat(1_000_000), b".".to_vec()].concat();
    let marks = b"(".repeat(1_000_000);
    // A tensor of 2^31 times one value, its strides being zero.
    let storage = b"c__T\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x0ctQK\0";
    let storage =
        String::from_utf8_lossy(storage).replace("c__T\n", "ctorch._utils\n_rebuild_tensor_v2\n").into_bytes();
    let tensor = |shape: &[u8], strides: &[u8]| {
        [b"}X\x01\0\0\0a", &storage[..], shape, strides, b"\x89ccollections\nOrderedDict\n)RtRs."].concat()
    };
    let sound = tensors(&archive(&tensor(b"K\x03K\x04\x86", b"K\x04K\x01\x86"))).unwrap();
    assert_eq!(sound["a"].shape, [3, 4]);
    let broad = tensor(b"J\xff\xff\xff\x7fK\x01\x86", b"K\0K\0\x86");
    let beyond = tensor(b"K\x03K\x05\x86", b"K\x05K\x01\x86");
    let huge = tensor(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x04\x86", b"K\x04K\x01\x86");
    let negative = tensor(b"J\xff\xff\xff\xffK\x04\x86", b"K\x04K\x01\x86");
    for (i, program) in [deep, lists, marks, broad, beyond, huge, negative].iter().enumerate() {
        tensors(&archive(program)).expect_err(&format!("program {i}"));
    }
}
