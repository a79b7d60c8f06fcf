"""Put what the site needs of other packages beside the notebooks, so that its pages ask no other server: plotly.min.js."""
import shutil
from pathlib import Path

import plotly

target = Path(__file__).resolve().parent.parent / 'nbs' / 'plotly.min.js'
shutil.copy(Path(plotly.__file__).parent / 'package_data' / 'plotly.min.js', target)
print(target.name, f'{target.stat().st_size / 1e6:.1f} MB')
