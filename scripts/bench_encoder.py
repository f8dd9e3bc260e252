"""An encoder of MiniLM-L6's shape with random weights, to measure on: bench_encoder.py DIR"""
import sys

import torch
from transformers import BertConfig, BertForSequenceClassification

torch.manual_seed(0)
config = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
                    max_position_embeddings=512, num_labels=2,
                    # Losses are compared, and each engine would draw other zeros.
                    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
BertForSequenceClassification(config).save_pretrained(sys.argv[1])
