//! Storage formats against the libraries that own them: bitsandbytes (tests/fixtures/bnb) and the gguf package
//! (tests/golden/gguf_blocks.safetensors). Everything is compared bit for bit.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use trimtab::dtype::Nf4Layout;
use trimtab::quant::dynamic;
use trimtab::quant::ggml::{self, GgmlType};
use trimtab::quant::ggml_encode;
use trimtab::quant::nf4::{self, Nf4, Quantizer};
use trimtab::weights::safetensors::{Dtype, SafetensorsFile};

fn path(rest: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(rest)
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

/// A stored tensor's values and how values are rounded when they are stored so.
fn decode(file: &SafetensorsFile, name: &str) -> (Vec<f32>, fn(f32) -> f32) {
    let view = file.get(name).unwrap();
    let ty = match view.dtype {
        Dtype::F32 => GgmlType::F32,
        Dtype::F16 => GgmlType::F16,
        Dtype::BF16 => GgmlType::BF16,
        other => panic!("{name} is {other:?}"),
    };
    let round: fn(f32) -> f32 = match ty {
        GgmlType::F16 => |v| f16::from_f32(v).to_f32(),
        GgmlType::BF16 => |v| bf16::from_f32(v).to_f32(),
        _ => |v| v,
    };
    let mut out = vec![0.0; view.shape.iter().product()];
    ggml::dequantize(ty, view.bytes, &mut out);
    (out, round)
}

const NF4_FILES: [(&str, bool); 6] = [
    ("nf4_float32", false),
    ("nf4_bfloat16", false),
    ("nf4_float16", false),
    ("nf4_dq_float32", true),
    ("nf4_dq_bfloat16", true),
    ("nf4_dq_float16", true),
];

/// What bitsandbytes stored, put in the order of `Nf4Layout`.
fn stored_nf4(file: &SafetensorsFile, elements: usize, double: bool) -> Vec<u8> {
    let layout = Nf4Layout::new(elements, double);
    let mut bytes = vec![0; layout.bytes];
    let part = |name: &str| file.get(name).unwrap().bytes;
    bytes[layout.codes].copy_from_slice(part("weight"));
    bytes[layout.absmax].copy_from_slice(part("weight.absmax"));
    if double {
        bytes[layout.nested].copy_from_slice(part("weight.nested_absmax"));
        let state: serde_json::Value = serde_json::from_slice(part("weight.quant_state.bitsandbytes__nf4")).unwrap();
        let offset = state["nested_offset"].as_f64().unwrap() as f32;
        bytes[layout.offset].copy_from_slice(&offset.to_le_bytes());
    }
    bytes
}

#[test]
fn the_tables_are_bitsandbytes() {
    let file = SafetensorsFile::open(path("fixtures/bnb/nf4_dq_float32.safetensors")).unwrap();
    let code = f32s(file.get("weight.quant_map").unwrap().bytes);
    assert_eq!(bits(&code), bits(&nf4::CODE));
    let map = f32s(file.get("weight.nested_quant_map").unwrap().bytes);
    assert_eq!(bits(&map), bits(nf4::dynamic_map()));
    let maps = SafetensorsFile::open(path("fixtures/bnb/dynamic_maps.safetensors")).unwrap();
    assert_eq!(bits(&f32s(maps.get("dynamic_signed").unwrap().bytes)), bits(nf4::dynamic_map()));
    let unsigned = bits(&f32s(maps.get("dynamic_unsigned").unwrap().bytes));
    assert_eq!(unsigned, bits(&dynamic::unsigned().values));
    assert_ne!(unsigned, bits(nf4::dynamic_map()), "the control");
}

#[test]
fn nf4_quantizes_as_bitsandbytes() {
    for (name, double) in NF4_FILES {
        let file = SafetensorsFile::open(path(&format!("fixtures/bnb/{name}.safetensors"))).unwrap();
        let (original, _) = decode(&file, "_orig");
        let expected = stored_nf4(&file, original.len(), double);
        let found = nf4::quantize(&original, double).unwrap();
        assert!(found == expected, "{name}: bytes {:?} differ", differences(&found, &expected));
    }
}

/// The comparison above sees one value that is moved over one threshold.
#[test]
fn control_a_changed_value_shows() {
    let file = SafetensorsFile::open(path("fixtures/bnb/nf4_float32.safetensors")).unwrap();
    let (mut original, _) = decode(&file, "_orig");
    original[100] = -original[100];
    let expected = stored_nf4(&file, original.len(), false);
    assert_eq!(differences(&nf4::quantize(&original, false).unwrap(), &expected), [50]);
}

fn differences(a: &[u8], b: &[u8]) -> Vec<usize> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).filter(|&i| a[i] != b[i]).collect()
}

#[test]
fn nf4_dequantizes_as_bitsandbytes() {
    for (name, double) in NF4_FILES {
        let file = SafetensorsFile::open(path(&format!("fixtures/bnb/{name}.safetensors"))).unwrap();
        let (expected, round) = decode(&file, "_dequant");
        let bytes = stored_nf4(&file, expected.len(), double);
        let mut found = vec![0.0; expected.len()];
        nf4::dequantize(&bytes, double, &mut found);
        let rounded: Vec<f32> = found.iter().map(|&v| round(v)).collect();
        assert_eq!(bits(&rounded), bits(&expected), "{name}");

        // Any stretch is the same as it is in the whole.
        let tensor = Nf4::new(&bytes, expected.len(), double).unwrap();
        for range in [0..0, 0..1, 1..2, 63..65, 61..203, 15_297..15_360] {
            let mut part = vec![0.0; range.len()];
            tensor.dequantize(range.clone(), &mut part);
            assert_eq!(bits(&part), bits(&found[range]), "{name}");
        }
        assert!(Nf4::new(&bytes[..bytes.len() - 1], expected.len(), double).is_none(), "the control");
    }
}

/// Values with nothing special about them.
fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 2_654_435_761) % 10_007) as f32 / 5_003.0 - 1.0).collect()
}

#[test]
fn nf4_in_pieces_is_nf4_whole() {
    for n in [0, 1, 2, 63, 64, 65, 127, 1000, 70_001] {
        for double in [false, true] {
            let x = values(n);
            let whole = nf4::quantize(&x, double).unwrap();
            for piece in [1, 7, 64, 100, 4096] {
                let mut quantizer = Quantizer::new(n, double);
                x.chunks(piece).for_each(|x| quantizer.push(x));
                assert!(quantizer.finish().unwrap() == whole, "{n} in pieces of {piece}");
            }
            let mut back = vec![0.0; n];
            nf4::dequantize(&whole, double, &mut back);
            for (a, b) in x.iter().zip(&back) {
                // Half the widest gap between two codes, and what double quantization adds.
                assert!((a - b).abs() <= 0.16, "{a} came back as {b}");
            }
        }
    }
}

#[test]
fn nf4_refuses_what_it_cannot_hold() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = values(200);
        x[130] = bad;
        let error = nf4::quantize(&x, true).unwrap_err().to_string();
        assert!(error.contains("128..192"), "{error}");
    }
    let mut short = Quantizer::new(65, false);
    short.push(&values(64));
    assert!(short.finish().is_err());
}

#[test]
fn ggml_blocks_decode_as_the_gguf_package_does() {
    let file = SafetensorsFile::open(path("golden/gguf_blocks.safetensors")).unwrap();
    for ty in GgmlType::ALL {
        let bytes = file.get(&format!("{}.bytes", ty.name())).unwrap().bytes;
        let expected = f32s(file.get(&format!("{}.values", ty.name())).unwrap().bytes);
        assert_eq!(ty.bytes(expected.len()), Some(bytes.len()), "{}", ty.name());
        let mut found = vec![0.0; expected.len()];
        ggml::dequantize(ty, bytes, &mut found);
        assert_eq!(bits(&found), bits(&expected), "{}", ty.name());

        // The control: no byte of a block is without effect.
        for at in 0..ty.block_bytes() {
            let mut changed = bytes.to_vec();
            changed[at] ^= 0xff;
            ggml::dequantize(ty, &changed, &mut found);
            assert_ne!(bits(&found), bits(&expected), "{} byte {at}", ty.name());
        }
    }
}

/// What is written is what ggml writes, whatever the values; and it reads back near them.
#[test]
fn blocks_are_those_of_the_reference_quantizers() {
    let file = SafetensorsFile::open(path("golden/gguf_quantized.safetensors")).unwrap();
    let values = f32s(file.get("values").unwrap().bytes);
    for (ty, bits) in
        [(GgmlType::Q4_0, 4), (GgmlType::Q5_0, 5), (GgmlType::Q8_0, 8), (GgmlType::Q4_K, 4), (GgmlType::Q6_K, 6)]
    {
        let golden = file.get(ty.name()).unwrap().bytes;
        let mut bytes = b"before".to_vec();
        assert!(ggml_encode::quantize(ty, &values, &mut bytes));
        let (own, size) = (&bytes[6..], ty.block_bytes());
        assert_eq!(own.len(), golden.len());
        let wrong: Vec<usize> =
            (0..own.len() / size).filter(|i| own[i * size..][..size] != golden[i * size..][..size]).collect();
        assert!(wrong.is_empty(), "{}: blocks {wrong:?} of {}", ty.name(), own.len() / size);
        // The last rows are of one size: an error of half a step of their range.
        let mut back = vec![0.0; values.len()];
        ggml::dequantize(ty, own, &mut back);
        let last = values.len() - 3072..values.len();
        let largest = values[last.clone()].iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = last.map(|i| (values[i] - back[i]).abs()).fold(0f32, f32::max);
        assert!(error < 2.0 * largest / (1 << bits) as f32, "{}: {error} of {largest}", ty.name());
        // The control: one value more or less is seen.
        let (mut other, mut changed) = (values.clone(), Vec::new());
        other[33] += 0.5;
        ggml_encode::quantize(ty, &other, &mut changed);
        assert!(changed != golden, "{}", ty.name());
    }
    assert!(!ggml_encode::quantize(GgmlType::Q5_K, &values, &mut Vec::new()), "it is only read");
}
