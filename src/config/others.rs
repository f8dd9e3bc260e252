//! What other tools call the settings: PEFT, transformers' `TrainingArguments`, TRL, Axolotl, LLaMA-Factory, Unsloth,
//! torchtune. One table for the keys of a file and for flags.

/// Their name with underscores, our name or nothing, and what else there is to say.
type Row = (&'static str, &'static str, &'static str);

const QLORA: &str = "nf4, with double-quant for 4.13 bits a weight in place of 4.5";
const NO_F16: &str = "bf16 or f32; there is no fp16, which would need its loss scaled";
const EVERY_STEP: &str = "every step is in metrics.jsonl of the run folder";

#[rustfmt::skip]
const OTHERS: &[Row] = &[
    ("adapter_name_or_path", "adapter", ""),
    ("adapter_path", "adapter", ""),
    ("adam_epsilon", "adam_eps", ""),
    ("base_model", "model", ""),
    ("batch", "batch_size", ""),
    ("beta1", "adam_beta1", ""),
    ("beta2", "adam_beta2", ""),
    ("bf16", "dtype", "bf16"),
    ("bits", "quantize", QLORA),
    ("bnb_4bit_quant_type", "quantize", QLORA),
    ("bnb_4bit_use_double_quant", "double_quant", ""),
    ("bnb_4bit_compute_dtype", "dtype", ""),
    ("block_size", "max_seq_len", ""),
    ("checkpoint_path", "model", ""),
    ("cutoff_len", "max_seq_len", ""),
    ("data_path", "data", ""),
    ("dataset", "data", "the path of a file"),
    ("dataset_name", "data", "the path of a file"),
    ("dataset_path", "data", ""),
    ("double_quantization", "double_quant", ""),
    ("eval_dataset", "eval_data", ""),
    ("eval_file", "eval_data", ""),
    ("eval_steps", "eval_every", ""),
    ("field", "columns", "NAME=COLUMN pairs: text=review,label=stars"),
    ("finetuning_type", "method", ""),
    ("fp16", "dtype", NO_F16),
    ("gpu", "device", "cuda:N, as `trimtab devices` numbers them"),
    ("gradient_accumulation_steps", "micro_tokens", "batch-size is what a step takes in all, and what goes through the model at a time is a number of tokens"),
    ("gradient_checkpointing", "recompute", "all; what is cheap is computed again without it"),
    ("init_lora_weights", "", "new factors start as PEFT's default does"),
    ("iters", "steps", ""),
    ("learning_rate", "lr", ""),
    ("load_in_4bit", "quantize", QLORA),
    ("load_in_8bit", "", "frozen weights are kept as the files have them, or by quantize nf4 in 4 bits"),
    ("logging_steps", "", EVERY_STEP),
    ("lora_alpha", "alpha", ""),
    ("lora_dropout", "dropout", ""),
    ("lora_modules", "targets", ""),
    ("lora_r", "rank", ""),
    ("lora_rank", "rank", ""),
    ("lora_target", "targets", ""),
    ("lora_target_modules", "targets", ""),
    ("lr_scheduler", "schedule", ""),
    ("lr_scheduler_type", "schedule", ""),
    ("max_length", "max_seq_len", ""),
    ("max_memory", "memory", ""),
    ("max_new_tokens", "", "it is a flag of `trimtab generate`: --max-tokens"),
    ("max_seq_length", "max_seq_len", ""),
    ("max_source_length", "max_seq_len", ""),
    ("max_steps", "steps", ""),
    ("max_target_length", "max_target_len", ""),
    ("micro_batch_size", "micro_tokens", "what goes through the model at a time is a number of tokens"),
    ("mlm_probability", "mask_share", ""),
    ("mode", "method", ""),
    ("model_max_length", "max_seq_len", ""),
    ("model_name", "model", ""),
    ("model_name_or_path", "model", ""),
    ("model_path", "model", ""),
    ("modules_to_save", "targets", "LoRA takes embed_tokens and lm_head as targets; a task's head is trained anyway"),
    ("no_cuda", "device", "cpu"),
    ("num_epochs", "epochs", ""),
    ("num_train_epochs", "epochs", ""),
    ("num_virtual_tokens", "virtual_tokens", ""),
    ("optim", "optimizer", ""),
    ("output", "out", ""),
    ("output_dir", "out", ""),
    ("overwrite_output_dir", "", "it is a flag of `trimtab train`: --overwrite"),
    ("packing", "", "sequences are always packed, and never see one another"),
    ("peft_type", "method", ""),
    ("per_device_eval_batch_size", "batch_size", ""),
    ("per_device_train_batch_size", "batch_size", "batch-size is what a step takes in all"),
    ("problem_type", "", "it follows from the labels, or from config.json"),
    ("qlora", "quantize", QLORA),
    ("quantization", "quantize", ""),
    ("quantization_bit", "quantize", QLORA),
    ("r", "rank", ""),
    ("random_seed", "seed", ""),
    ("resume_from_checkpoint", "", "it is a flag of `trimtab train`: --resume RUN"),
    ("save_steps", "save_every", ""),
    ("save_total_limit", "keep", ""),
    ("sequence_len", "max_seq_len", ""),
    ("sequence_length", "max_seq_len", ""),
    ("target_modules", "targets", ""),
    ("text_column", "columns", "text=COLUMN"),
    ("label_column", "columns", "label=COLUMN"),
    ("dataset_text_field", "columns", "text=COLUMN"),
    ("torch_dtype", "dtype", ""),
    ("train_batch_size", "batch_size", ""),
    ("train_data", "data", ""),
    ("train_file", "data", ""),
    ("train_on_inputs", "", "of a prompt and a completion the completion is trained, of a text all"),
    ("trainable_token_indices", "trainable_tokens", ""),
    ("use_4bit", "quantize", QLORA),
    ("use_dora", "dora", ""),
    ("use_rslora", "rslora", ""),
    ("validation_file", "eval_data", ""),
    ("val_data", "eval_data", ""),
    ("val_set_size", "split", "a share of the rows"),
    ("warmup_ratio", "warmup", "below 1 it is a share of all steps"),
    ("warmup_steps", "warmup", ""),
    ("wd", "weight_decay", ""),
];

/// What a setting of another tool is here, if the name is known: our name with hyphens or nothing, and what else there is
/// to say. Hyphens, underscores and case do not matter.
pub fn meaning(name: &str) -> Option<(String, &'static str)> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    OTHERS.iter().find(|(theirs, ..)| *theirs == name).map(|(_, ours, more)| (ours.replace('_', "-"), *more))
}

#[cfg(test)]
mod tests {
    use super::super::FIELDS;
    use super::*;

    #[test]
    fn names_of_others_are_no_names_of_ours_and_mean_some() {
        let known = |name: &str| FIELDS.iter().any(|f| f.name == name);
        for (theirs, ours, more) in OTHERS {
            assert!(!known(theirs), "{theirs} is a setting");
            assert!(known(ours) || ours.is_empty() && !more.is_empty(), "{theirs} as {ours}, which is no setting");
        }
        let mut names: Vec<&str> = OTHERS.iter().map(|row| row.0).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice");
        assert_eq!(meaning("Learning-Rate"), Some(("lr".into(), "")));
        assert_eq!(meaning("lr"), None);
    }
}
