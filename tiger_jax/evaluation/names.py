"""What tables call the methods that are compared."""

OURS = "TIGER (this run)"
FUSED = "Fusion"
BASELINE_NAMES = {
    "popularity": "Popularity",
    "item_cooccurrence": "Item co-occurrence",
    "semantic_knn": "Semantic KNN",
    "dense_knn": "KNN over the codes' vectors",
    "sasrec": "SASRec, full softmax",
}
