//! What is learned: models, data, partitions, local training and evaluation on candle
