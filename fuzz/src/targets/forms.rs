//! Forms in text of files whose lengths and offsets must agree: mutations of a text reach what comes after the checks of
//! lengths, and bytes as they are reach those.

/// A safetensors file from a part of an input:
///
/// * `{header}`, a NUL, data: the length is put before the header;
/// * `#`, then a line `name dtype dimensions` for each tensor and lines `=key value` of metadata: a whole file, whose
///   tensors follow one another and whose values count up (a value in quotes is the tensor's bytes);
/// * else the bytes as they are.
pub fn safetensors(part: &[u8]) -> Vec<u8> {
    match part.first() {
        Some(b'{') => {
            let end = part.iter().position(|&b| b == 0).unwrap_or(part.len());
            with_length(&part[..end], part.get(end + 1..).unwrap_or_default())
        }
        Some(b'#') => built_safetensors(&part[1..]),
        _ => part.to_vec(),
    }
}

fn with_length(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(data);
    file
}

/// Bytes of data that a form makes at most.
const MOST: usize = 1 << 14;

fn built_safetensors(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let (mut entries, mut about, mut data) = (Vec::new(), Vec::new(), Vec::new());
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    for line in text.lines() {
        if let Some((key, value)) = line.strip_prefix('=').and_then(|l| l.split_once(' ')) {
            about.push(format!("{}:{}", quoted(key), quoted(value)));
            continue;
        }
        let mut words = line.splitn(4, ' ');
        let (Some(name), Some(dtype), Some(shape)) = (words.next(), words.next(), words.next()) else { continue };
        let bits: u128 = match dtype {
            "F64" | "I64" | "U64" => 64,
            "F32" | "I32" | "U32" => 32,
            "F16" | "BF16" | "I16" => 16,
            "F4" => 4,
            _ => 8,
        };
        let values = shape.split(',').filter_map(|n| n.parse::<u64>().ok());
        let values = values.fold(1u128, |n, d| n.saturating_mul(d.into()));
        let (start, bytes) = (data.len() as u128, values.saturating_mul(bits) / 8);
        if let Some(own) = words.next() {
            data.extend_from_slice(own.as_bytes());
        }
        let end = start + bytes;
        if end <= MOST as u128 {
            let from = data.len();
            data.resize(end as usize, 0);
            data.iter_mut().skip(from).enumerate().for_each(|(i, b)| *b = i as u8);
        }
        let (name, dtype) = (quoted(name), quoted(dtype));
        entries.push(format!("{name}:{{\"dtype\":{dtype},\"shape\":[{shape}],\"data_offsets\":[{start},{end}]}}"));
    }
    if !about.is_empty() {
        entries.insert(0, format!("\"__metadata__\":{{{}}}", about.join(",")));
    }
    with_length(format!("{{{}}}", entries.join(",")).as_bytes(), &data)
}

/// A GGUF file from an input: `#` and lines `key kind value` of metadata and `@name type dimensions` of tensors, of which
/// the whole file is made; else the bytes as they are. A value of kind `[kind]` is divided at bars.
pub fn gguf(input: &[u8]) -> Vec<u8> {
    let Some(text) = input.strip_prefix(b"#") else { return input.to_vec() };
    let text = String::from_utf8_lossy(text);
    let (mut keys, mut tensors, mut offset) = (Vec::new(), Vec::new(), 0u64);
    let (mut key_count, mut tensor_count) = (0u64, 0u64);
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let (Some(name), Some(kind), value) = (words.next(), words.next(), words.next().unwrap_or_default()) else {
            continue;
        };
        if let Some(name) = name.strip_prefix('@') {
            let lengths: Vec<u64> = value.split(',').filter_map(|n| n.parse().ok()).collect();
            string(&mut tensors, name);
            tensors.extend_from_slice(&(lengths.len() as u32).to_le_bytes());
            lengths.iter().for_each(|n| tensors.extend_from_slice(&n.to_le_bytes()));
            tensors.extend_from_slice(&kind.parse().unwrap_or(0u32).to_le_bytes());
            tensors.extend_from_slice(&offset.to_le_bytes());
            // Four bytes a value are enough for any type.
            let bytes = lengths.iter().fold(4u64, |n, &d| n.saturating_mul(d));
            offset = offset.saturating_add(bytes).saturating_add(31) & !31;
            tensor_count += 1;
            continue;
        }
        string(&mut keys, name);
        match kind.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
            Some(kind) => {
                let values = || value.split('|').filter(|v| !v.is_empty());
                keys.extend_from_slice(&9u32.to_le_bytes());
                keys.extend_from_slice(&number(kind).to_le_bytes());
                keys.extend_from_slice(&(values().count() as u64).to_le_bytes());
                values().for_each(|v| scalar(&mut keys, kind, v));
            }
            None => {
                keys.extend_from_slice(&number(kind).to_le_bytes());
                scalar(&mut keys, kind, value);
            }
        }
        key_count += 1;
    }
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend_from_slice(&tensor_count.to_le_bytes());
    file.extend_from_slice(&key_count.to_le_bytes());
    file.extend(keys);
    file.extend(tensors);
    if offset <= MOST as u64 {
        let data = file.len().next_multiple_of(32) + offset as usize;
        // Halves of small numbers, so that scales are finite.
        file.resize(data, 0x2C);
    }
    file
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The number of a kind of values.
fn number(kind: &str) -> u32 {
    match kind {
        "u8" => 0,
        "i32" => 5,
        "u32" => 4,
        "f32" => 6,
        "bool" => 7,
        "str" => 8,
        "u64" => 10,
        other => other.parse().unwrap_or(13),
    }
}

fn scalar(out: &mut Vec<u8>, kind: &str, text: &str) {
    match kind {
        "u8" | "bool" => out.push(text.parse().unwrap_or(1)),
        "i32" => out.extend_from_slice(&text.parse().unwrap_or(0i32).to_le_bytes()),
        "u32" => out.extend_from_slice(&text.parse().unwrap_or(0u32).to_le_bytes()),
        "f32" => out.extend_from_slice(&text.parse().unwrap_or(0f32).to_le_bytes()),
        "u64" => out.extend_from_slice(&text.parse().unwrap_or(0u64).to_le_bytes()),
        _ => string(out, text),
    }
}
