//! Numbers of bytes as people write and read them. K, M, G and T are powers of 1024, as in KiB; KB, MB, GB and TB are
//! powers of 1000.

/// 1234567 as 1,234,567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// 1536 as 1.5 KiB.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// 1536 as 1.5 KiB (1,536 bytes).
pub fn exact(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        _ => format!("{} ({} bytes)", human(bytes), grouped(bytes)),
    }
}

const UNITS: [(&str, u64); 13] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

/// The bytes that a text means, at least 1: 6GiB, 6G, 6.5 gib, 24GB, 1048576.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let unit = UNITS.iter().find_map(|(name, size)| Some((text.strip_suffix(name)?, *size)));
    let (number, size) = unit.unwrap_or((text.as_str(), 1));
    let bytes = number.trim_end().parse::<f64>().ok()? * size as f64;
    (bytes >= 1.0 && bytes < (1u64 << 62) as f64).then_some(bytes as u64)
}

/// The shortest text of these bytes that [`bytes`] reads back: in the largest binary unit that they are a whole number of.
pub fn text(bytes: u64) -> String {
    const WRITTEN: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = WRITTEN.iter().find(|(_, bits)| bytes > 0 && bytes.is_multiple_of(1 << bits));
    unit.map_or(bytes.to_string(), |(name, bits)| format!("{}{name}", bytes >> bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1234567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        let sizes = [0, 1023, 1024, 1536, 1048570, 1 << 20, 3 << 30, 5 << 50];
        let texts = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 MiB", "3.0 GiB", "5120.0 TiB"];
        assert_eq!(sizes.map(human), texts);
        assert_eq!([512, 5_583_457_484].map(exact), ["512 bytes", "5.2 GiB (5,583,457,484 bytes)"]);
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        const GIB: u64 = 1 << 30;
        let table = [
            ("6GiB", 6 * GIB),
            ("6G", 6 * GIB),
            ("6g", 6 * GIB),
            (" 6 gib ", 6 * GIB),
            ("6144MiB", 6 * GIB),
            ("6.5GiB", 6 * GIB + GIB / 2),
            ("6GB", 6_000_000_000),
            ("6gb", 6_000_000_000),
            ("700m", 700 << 20),
            ("1e3", 1000),
            ("1048576", 1 << 20),
            ("17B", 17),
            ("1T", 1 << 40),
        ];
        for (text, want) in table {
            assert_eq!(bytes(text), Some(want), "{text}");
        }
        for wrong in ["0", "-1", "6X", "", "G", "0.5", "nan", "inf", "6 Gi B", "1e30", "6,5G"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
        for n in [1, 1023, 1024, 1536, 6 * GIB, 5 << 40] {
            assert_eq!(bytes(&text(n)), Some(n));
        }
        assert_eq!([1536, 6 * GIB].map(text), ["1536", "6GiB"]);
    }
}
