try { const theme = localStorage.getItem("fastkernels-theme"); if (theme) document.documentElement.style.colorScheme = theme; } catch { /* storage is off: the system's theme */ }
