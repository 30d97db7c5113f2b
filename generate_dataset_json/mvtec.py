"""Write ROOT/meta.json for MVTec AD: CLASS/{train,test}/KIND/*.png, CLASS/ground_truth/KIND/*_mask.png."""

import builder

if __name__ == "__main__":
    builder.run("mvtec", builder.mvtec_layout, __doc__)
